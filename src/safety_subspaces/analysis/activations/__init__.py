"""The subcommand ``activations`` of ``analyze.py``."""
