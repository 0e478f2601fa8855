"""The subcommand ``atlas`` of ``analyze.py``."""
