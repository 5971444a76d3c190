"""The tabs of the page, one file for each."""
