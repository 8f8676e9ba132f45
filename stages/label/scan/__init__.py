"""What is there. `listing` names the files, `probing` reads their headers in processes of `probe_pool`,
`identity` finds copies and edits, `scan` makes the catalog of it."""
