"""The section on watching."""
