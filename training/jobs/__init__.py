"""A run as a Job on the Hub, for those without a GPU: its price, what is sent, its log, and how it ends.

The Job runs the same command as at home, in a container of the Hub. `run_on_hub.py` is the way in.
"""
