"""The section on probes."""
