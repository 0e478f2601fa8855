"""One module for each subcommand of ``analyze.py``: ordinary typed functions that a notebook can call as well."""
