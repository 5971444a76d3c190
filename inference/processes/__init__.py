"""Processes of their own for work on strangers' files: models, chat templates, recordings.

- `channel`: JSON messages between two processes.
- `confinement`: what a child process may not do: no secrets, no network, few files, bounded memory.
- `child`: starts such a process and watches it. A child that is silent for too long is killed.

Knows nothing of models or sound.
"""
