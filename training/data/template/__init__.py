"""What a chat template makes of a row: its text, and which part of it a run learns.

`jinja.py` renders. `skeleton.py` finds where a template writes each turn, for conversations of one shape.
`training_template.py` renders rows. May import `inference` and `training.data.rows`.
"""
