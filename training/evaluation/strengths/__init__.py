"""What an adapter learnt and made the base forget, at several strengths."""
