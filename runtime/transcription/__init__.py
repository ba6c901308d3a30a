"""From a recording or live speech to segments: windows, batches, strategies, streams."""
