"""The error that users see: a sentence with the thing, the reason and the fix."""


class LabError(Exception):
    """A problem that the user can fix. The page and the terminal (exit code 2) show its message, one sentence."""
