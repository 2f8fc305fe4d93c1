"""The metric: backbone, distances and heads, and how people load and use it."""
