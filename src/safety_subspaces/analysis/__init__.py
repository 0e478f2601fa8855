"""One package for each subcommand of ``analyze.py``: ordinary typed functions that a notebook can call as well.

A ``command.py`` imports at its top what its signature needs, which takes no time; its function imports the rest when it
is called, so that a help text and most refusals are there at once.
"""
