"""Checkpoint to verified ONNX model folder; the only place that imports torch."""
