"""What a run leaves in its folder: the adapter or the complete model, its precision, and the run record.

`write_model.py` writes the files, `precision.py` says which dtypes the run used.
"""
