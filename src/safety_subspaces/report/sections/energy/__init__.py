"""The section on energy."""
