"""Teachers give codes for a recording: `encodec` (published weights), `mel_rvq` and `kmeans` (fitted on the
user's audio), `best_rq` (drawn at random)."""
