"""A run in its folder: lock, status, metrics, checkpoints, what it writes and when it stops."""
