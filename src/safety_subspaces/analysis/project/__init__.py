"""The subcommand ``project`` of ``analyze.py``."""
