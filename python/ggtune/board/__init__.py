"""Eyes on runs: the screen of ``ggtune watch`` and the web page of ``ggtune board``. They change nothing of a run."""
