"""The scan of the roots: `listing` names the files, by the threads of `walking`; `probing` reads headers in
child processes of `probe_pool`, which `parts` keeps; `identity` finds copies and edits, `scan` writes the
catalog."""
