"""What can be packed: one file per source, each yields samples."""
