"""Publishing a finished run: the model card, and the upload to a hub."""
