"""Modules that several commands use: options, errors, progress, signals."""
