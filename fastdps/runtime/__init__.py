"""What every command needs of the machine: processes, signals, files, the console."""
