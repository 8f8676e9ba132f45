"""Where it runs: on Ray, whose only imports are here, or in plain processes of this machine (`plain`)."""

import os

# Ray reads these when it is imported.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if not os.environ.get("OVERTONE_DEBUG"):  # its warnings would tear our screen
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
