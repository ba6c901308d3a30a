"""Audio to text on an exported model folder; imports neither torch nor the other layers."""
