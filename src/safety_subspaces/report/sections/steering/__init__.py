"""The section on steering."""
