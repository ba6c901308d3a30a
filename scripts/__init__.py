"""Command-line programs; nothing imports them."""
