"""Several processes that train one model, one for each GPU.

`first_process.py` lets the first process decide for all. `launch.py` starts the processes.
"""
