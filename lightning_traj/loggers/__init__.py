"""What of a trajectory goes to which logger."""

from __future__ import annotations
