"""What a run was, for people to read: figures, a page, Markdown."""
