"""Training: a task, a step, the loop around it, and what is saved of it."""
