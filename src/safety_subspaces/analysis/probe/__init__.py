"""The subcommand ``probe`` of ``analyze.py``."""
