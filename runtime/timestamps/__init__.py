"""Finds out when words and sentences were said."""
