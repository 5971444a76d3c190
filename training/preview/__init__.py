"""What a user sees of their data before they pay for a GPU: `python -m training data RECIPE`

`contents.py` gathers rows, lengths, examples, steps and estimates, `spans.py` marks what a run learns, `terminal.py`
prints it all, and `page.py` writes it as `data.html`. The page has text of the data set: it stays on this machine.
"""
