"""The models that can be selected: which there are, which files of them are on this disk, what choosing one costs, and
how missing files get here.

One question: `ModelList` finds the entry, `Availability` says what choosing it costs, `ModelDownloads` fetches what
is missing, `LocalModels` gives the files, and `EnginePool` the engine that answers with them.
"""
