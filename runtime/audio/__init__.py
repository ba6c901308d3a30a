"""From files, arrays and streams to samples."""
