"""The section on activations."""
