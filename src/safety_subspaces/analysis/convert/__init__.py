"""The subcommand ``convert`` of ``analyze.py``."""
