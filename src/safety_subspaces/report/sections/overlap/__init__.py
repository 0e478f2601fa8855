"""The section on overlap."""
