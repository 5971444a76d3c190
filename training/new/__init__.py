"""Writes a recipe for a user's own base and data: `python -m training new NAME --base … --data … --goal … --card …`

`inspection.py` looks at base and data, `choices.py` chooses the fields with a reason for each, `recipe_file.py` writes
them as YAML with the fields' own descriptions, and `dialogue.py` asks for what the command line leaves out.
"""
