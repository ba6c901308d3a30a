"""Exports a checkpoint to a verified ONNX model folder; the only room that imports torch."""
