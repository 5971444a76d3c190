"""Teach: a visitor of their own machine writes or speaks the better answer. On a Space these parts do not exist."""
