"""Evaluating models: suites of questions, statistics and reports."""
