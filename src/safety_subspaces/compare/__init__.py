"""Three checkpoints of one's own, and what this suite says of them: a few analyses in a row, and the page."""
