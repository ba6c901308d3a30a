"""The service: an HTTP server with OpenAI's audio API. It stands on the public API alone."""
