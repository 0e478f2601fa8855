"""The subcommand ``judge`` of ``analyze.py``."""
