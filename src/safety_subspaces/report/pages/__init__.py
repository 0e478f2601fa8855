"""Whole pages: of one study, and of several seeds."""
