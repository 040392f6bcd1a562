"""``python -m ggtune``."""

from ggtune.cli import main

main()
