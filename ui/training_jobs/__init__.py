"""Training from the page: a queue of jobs, each `python -m training run` in a process of its own.

A job is a folder: its recipe and data, `job.json` (the state), `output.log`, and the run in a folder of the same name.
A runner process works off the queue, one job at a time. It does not end with the page, and the page finds its jobs
again when it starts. Imports nothing of `training/`.
"""
