"""Scores of a run: on held-out images, and against human judgements."""
