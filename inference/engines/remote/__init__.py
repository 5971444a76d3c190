"""The remote engine: models on an OpenAI-compatible server. `engine` has the class, `chat_completion` one request."""
