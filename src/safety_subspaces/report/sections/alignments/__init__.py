"""The section on alignments."""
