"""Compare models: ask several at once, collect blind votes, rank the models, and show what differs.

- `compare` asks several models one question, and chooses the models of a battle.
- `database` is the SQLite file, in which `votes` stores battles and votes.
- `votes_hub` copies them to a data set on the Hub.
- `ranking` turns votes into a Bradley-Terry ranking.
- `text_diff` marks what differs between answers; `model_diff` lists what differs between two models.
"""
