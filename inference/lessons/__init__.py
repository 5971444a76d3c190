"""Lessons: better answers that people write where a model answered badly.

- `lessons` keeps them in the SQLite file of the votes; `lessons_hub` copies them to a private data set on the Hub.
"""
