"""Live speech: the WebSocket `/v1/realtime` with OpenAI's events of a transcription session."""
