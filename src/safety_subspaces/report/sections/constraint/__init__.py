"""The section on constraint."""
