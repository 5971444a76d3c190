"""Evaluation while training: the loss on held-out conversations, the best weights, early stopping, sample answers.

`callback.py` decides when to measure and what follows from it. `held_out_loss.py` measures, `best_weights.py` keeps the
weights with the lowest loss, `samples.py` logs answers, `reports.py` checks where curves are written.
"""
