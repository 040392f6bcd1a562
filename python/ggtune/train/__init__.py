"""Training: build, plan, schedule, loop, and how it ended. Nothing here parses a command line."""
