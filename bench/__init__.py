"""Benchmarks: the images per second of each stage on this machine, and a limit of the machine. See README.md."""
