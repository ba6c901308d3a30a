"""Reads model folders, and trusts nothing in them."""
