"""Writes text files, subtitles and JSON."""
