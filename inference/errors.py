"""The one kind of error a person sees: a sentence that names the thing, the reason and the mend."""


class LabError(Exception):
    """Something the user can mend. The message is one sentence, fit for the page and the terminal (exit code 2)."""
