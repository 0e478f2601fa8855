"""The subcommand ``utility`` of ``analyze.py``."""
