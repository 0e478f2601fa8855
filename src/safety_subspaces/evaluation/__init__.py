"""Behaviour by generation: utility, harm and over-refusal of a model in memory, each with n and a standard error."""
