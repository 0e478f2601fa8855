"""Models behind an OpenAI-compatible endpoint, as a source of answers and of verdicts."""
