"""The plan of a run: how a step's conversations are computed on a card, what that needs and takes.

`cards.py` describes cards, `memory.py` counts bytes, `speed.py` seconds. `plan.py` chooses the fastest way that fits.
`estimates.py` says what a run takes on a card. `fallback.py` continues with a smaller plan if memory runs out.
"""
