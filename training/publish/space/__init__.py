"""The page as a Space on the Hub: `space_files.py` says what it consists of, `deploy.py` sends it."""
