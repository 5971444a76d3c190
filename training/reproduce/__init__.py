"""Trains a published or local run again and says whether the result is the same: `python -m training reproduce`.

`original` finds the run, `checks` compares what it was made of with what is here, `run_comparison` compares the two
results, and `reproduction_report` writes both down.
"""
