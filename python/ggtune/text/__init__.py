"""Books and notes for training on plain text: fetched, cleaned and cut into chunks."""
