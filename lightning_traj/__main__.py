"""Run the command line with ``python -m lightning_traj``."""

import sys

from lightning_traj.cli import main

sys.exit(main())
