"""Runs the graphs on OpenVINO."""
