"""Reference transcripts: measuring an export needs them too, so they are read there."""

from whisper_npu.export.references import Reference, read_references

__all__ = ["Reference", "read_references"]
