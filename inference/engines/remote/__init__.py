"""The remote engine: models on an OpenAI-compatible server. `engine` has the engine, the others serve it."""
