"""What the stages measure with: timing, data, the machine, the usual way."""
