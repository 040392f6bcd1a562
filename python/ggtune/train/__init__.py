"""Training: plan, loop, schedule, checkpoints. Nothing here parses a command line."""
