"""Contexts: distortions, how their parameters are drawn, and rankings of them."""
