"""The Wyoming protocol: speech recognition for Home Assistant and its voice satellites."""
