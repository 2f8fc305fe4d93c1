"""What is made of results: comparisons, plans, pictures, tables."""
