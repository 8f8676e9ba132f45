"""The scan of the roots: `listing` names the files, `probing` reads headers in the child processes of
`probe_pool`, `identity` finds copies and edits, `scan` writes the catalog."""
