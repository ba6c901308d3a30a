"""Converts between tokens and text."""
