"""Commands of `python -m training` with many options, one in a file. They import what they run when they run."""
