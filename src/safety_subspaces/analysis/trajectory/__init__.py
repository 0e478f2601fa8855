"""The subcommand ``trajectory`` of ``analyze.py``."""
