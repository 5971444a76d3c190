"""Fine-tuning: the trainer, attention, the memory plan, progress and checkpoints."""
