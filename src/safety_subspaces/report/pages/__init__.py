"""Whole pages, of one study or of several."""
