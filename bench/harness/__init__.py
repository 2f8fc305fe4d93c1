"""The tools of the stages: timing, data, the machine, the baseline that most people use."""
