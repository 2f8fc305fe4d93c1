"""Pack images into shard sets; see `--help`."""

import sys

if __name__ == "__main__":
    # Not at the top: worker processes import this file, and need nothing of the command line.
    from fastdps.commands.make_shards import make_shards

    sys.exit(make_shards())
