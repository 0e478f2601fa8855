"""Judges: what scores an answer to a harmful or a benign request."""
