"""Teachers name codes for a recording: `encodec` (published weights), `mel_rvq` and `kmeans` (fitted on one's
own audio), `best_rq` (drawn at random). `features` is what the last three look at, `fitted_weights` how they
are kept."""
