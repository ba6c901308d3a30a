"""From samples to log-mel frames, speech and windows."""
