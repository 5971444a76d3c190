"""From the files of a data set to checked rows of the form `training.data.Row`.

`files.py` parses JSON, CSV and Parquet files into raw rows. `forms.py` finds out what the columns of a raw row mean and
makes a `Row` of it, with `turns.py` for the turns of a conversation and `answer_pairs.py` for pairs of answers.
`checked.py` does this for all rows of a data set and caches the result. May import `training.data.rows` and
`training.data.source`.
"""
