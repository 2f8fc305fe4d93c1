"""`accelerate launch -m fastdps.train`: the command `fastdps train` on each process of a job."""

import sys

from fastdps.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
