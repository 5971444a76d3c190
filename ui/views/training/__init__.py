"""Views of a training: how far it is, and what the gate found about the model."""
