"""Files that are whole or not there: results, provenance, studies on disk, and the errors that name what is wrong."""
