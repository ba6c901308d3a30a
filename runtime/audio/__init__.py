"""Reads audio files, arrays and streams as samples."""
