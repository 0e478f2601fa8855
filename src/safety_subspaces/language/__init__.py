"""Language models, tokenizers, prompts, and the rows of data that become them."""
