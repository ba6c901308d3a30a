"""Turns recordings and live speech into segments: windows, batches, strategies, streams."""
