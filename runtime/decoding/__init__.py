"""From encoded windows to tokens, and whether they are to be believed."""
