"""What a chat template makes of a row: its text, its tokens, and which of them a run learns.

`jinja.py` renders. `skeleton.py` finds where a template writes each turn, for conversations of one shape.
`training_template.py` renders rows, and `encoder.py` turns them into tokens. May import `inference` and
`training.data`.
"""
