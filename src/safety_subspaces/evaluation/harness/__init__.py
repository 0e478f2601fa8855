"""Utility by the language model evaluation harness."""
