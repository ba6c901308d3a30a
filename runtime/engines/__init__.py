"""Runs the graphs on inference engines."""
