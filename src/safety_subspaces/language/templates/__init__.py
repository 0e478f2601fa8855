"""Named prompt templates: a module here is one by its short name, with a text that holds ``{prompt}``."""
