"""`accelerate launch -m fastdps.training.run`, as the README has it: the command `fastdps train`."""

import sys

from fastdps.training.run import main

if __name__ == "__main__":
    sys.exit(main())
