"""The subcommand ``overlap`` of ``analyze.py``."""
