"""Check a shard set; see `--help`."""

import sys

from fastdps.commands.check_shards import check_shards

if __name__ == "__main__":
    sys.exit(check_shards())
