"""``analyze.py bundle``: what a study says, in one archive that others can check."""
