"""How good a model is on samples: losses, answers, and what a merge has kept. Nothing here parses a command line."""
