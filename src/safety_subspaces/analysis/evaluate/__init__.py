"""The subcommand ``evaluate`` of ``analyze.py``."""
