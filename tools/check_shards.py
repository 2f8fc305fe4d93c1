"""Check a shard set; see `--help`."""

import sys

from fastdps.packing.check_command import check_shards

if __name__ == "__main__":
    sys.exit(check_shards())
