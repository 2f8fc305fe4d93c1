"""Analyses of results: comparisons, capacity plans, pictures, tables."""
