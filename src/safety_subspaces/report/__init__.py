"""A study on one page: what was run, what came out beside its controls, and what the numbers say."""
