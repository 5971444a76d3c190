"""Comparing models: one question to several, votes, the ranking, and what differs between answers and models."""
