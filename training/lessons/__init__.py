"""Lessons: teach a model better answers, and compare it with the model that it came from.

`python -m training lessons MODEL` runs these in their order:

- `phrasings` words each question in several ways: some are taught, others only asked.
- `keep` finds what the model should keep: rows of its own training data, or answers that it gives now.
- `length` leaves out lessons that are longer than the model reads.
- `prepare` writes both as data, with a recipe.
- `gate` compares the trained model with its parent. `python -m training gate` does that alone.

May import the rest of `training` and `inference`.
"""
