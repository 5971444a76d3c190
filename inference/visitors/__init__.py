"""What visitors may send, and how much: every request passes here before anything uses it.

- `values` has one pydantic model for each kind of request from the page, the API and the terminal.
- `limits` bounds the questions of one visitor, and tells visitors apart. The terminal has no such limits.
"""
