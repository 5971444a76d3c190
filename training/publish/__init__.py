"""Publishing: model cards, uploads to the Hub, and the Space."""
