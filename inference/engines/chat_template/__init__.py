"""From chat messages to token ids, through the chat template that comes with a model, in a sandbox."""
