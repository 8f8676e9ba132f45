"""What only labelling needs: `run` (the columns of one run), `catalogs` (scan and plan), `teachers`
(weights), `registry` (OUT/recipe.yaml), `lock`, `progress`, `summary`, `dry_run`."""
