"""What a page is made of: tables, charts, sentences, sections."""
