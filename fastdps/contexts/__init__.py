"""What judges: distortions and how they are drawn, and rankings of them."""
