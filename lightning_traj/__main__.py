"""Run the command line with ``python -m lightning_traj``."""

import sys

from lightning_traj.cli import main

if __name__ == "__main__":
    sys.exit(main())
