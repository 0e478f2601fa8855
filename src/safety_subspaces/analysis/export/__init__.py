"""The subcommand ``export`` of ``analyze.py``."""
