"""Scores of answers against references, and how sure one can be of them. Pure functions; nothing here runs a model."""
