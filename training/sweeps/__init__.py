"""Sweeps: many variants of one recipe, trained and compared. The YAML files here are sweeps, too."""
