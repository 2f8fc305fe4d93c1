"""The metric: backbone, distances and heads, and the classes for users."""
