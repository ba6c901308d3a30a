"""Turns audio into text with an exported model folder; imports neither torch nor other layers."""
