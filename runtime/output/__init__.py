"""Text files, subtitles and JSON."""
