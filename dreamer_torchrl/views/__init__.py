"""Curves, plots, imagination and reports of runs."""
