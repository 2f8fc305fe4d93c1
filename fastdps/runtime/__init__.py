"""Processes, signals, files, console output and hardware: what all commands use."""
