"""Conversations that a visitor keeps: the list, export and import, and links that carry a question.

They are stored in the visitor's browser only (`browser_store.js`). The server checks everything that comes from there
and keeps nothing of it. The page imports `sidebar`.
"""
