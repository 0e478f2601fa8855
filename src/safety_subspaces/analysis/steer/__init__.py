"""The subcommand ``steer`` of ``analyze.py``."""
