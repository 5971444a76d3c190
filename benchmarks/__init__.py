"""Benchmarks: what this project costs, measured against a bare baseline in the same run.

`python -m benchmarks [NAME…] [--quick]` runs them and prints one table; `report` has what they share. Each other module
has a function `measure(quick)` that returns `Figure`s. Nothing else in the project imports from this package.
"""
