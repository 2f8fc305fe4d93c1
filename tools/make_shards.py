"""Pack images into shard sets; see `--help`."""

import sys

if __name__ == "__main__":
    # Imported here because worker processes import this file and do not need the command line.
    from fastdps.commands.make_shards import make_shards

    sys.exit(make_shards())
