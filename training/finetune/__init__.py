"""Fine-tuning: from a recipe to a model folder.

`run.py` has the verb `fine_tune`. `planning/` decides how it fits, `base_model.py` loads the base,
`trainer.py` extends TRL's trainer, `resume/` finds where to resume. May import `inference` and `training.data`.
"""
