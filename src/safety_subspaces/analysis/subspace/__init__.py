"""The subcommand ``subspace`` of ``analyze.py``."""
