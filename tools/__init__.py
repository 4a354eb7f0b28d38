"""Further commands, run as `python -m tools.NAME`."""
