"""Hidden states: captured, compared, probed and steered."""
