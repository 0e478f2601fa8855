"""The prompt alone."""

PLAIN = "{prompt}"
