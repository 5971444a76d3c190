"""Where a run resumes: what makes it the same run, its checkpoints on this disk, and their copy on the Hub.

`identity.py` compares runs, `checkpoints.py` keeps complete checkpoints, `hub_copy.py` uploads and downloads them.
"""
