"""Turns samples into log-mel frames, finds speech, and chooses windows."""
