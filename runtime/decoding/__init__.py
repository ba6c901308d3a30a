"""Decodes encoded windows to tokens, and judges whether their text is believed."""
