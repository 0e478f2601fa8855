"""The sections of a page, a package a topic."""
