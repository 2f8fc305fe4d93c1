"""Pack images into a shard set; see `--help`."""

import sys

from fastdps.packing.command import make_shards

if __name__ == "__main__":
    sys.exit(make_shards())
