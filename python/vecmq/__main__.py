"""``python -m vecmq`` is the command ``vecmq``."""

import sys

from vecmq.cli import main

if __name__ == "__main__":
    sys.exit(main())
