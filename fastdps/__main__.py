"""`python -m fastdps`: the command `fastdps`, which `accelerate launch -m fastdps` starts on every process."""

import sys

from fastdps.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
