"""Guard that keeps the failures of an observer from the run that it observes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

log = logging.getLogger(__name__)


class Guard:
    """Calls functions for an observer. A failure warns, once for each kind of call, and training goes on.

    Args:
        name: Name of the observer, for its warnings.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._warned: set[str] = set()

    def __call__(self, what: str, do: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``do`` with the other arguments; ``what`` names the kind of call in a warning."""
        try:
            do(*args, **kwargs)
        except Exception as error:
            message = f"{what} failed with {type(error).__name__}: {error}"
            # Only rank 0 warns. All ranks know of entries that are not finite; other failures may be this rank's own.
            rank = getattr(rank_zero_only, "rank", 0)
            if rank and what not in self._warned and not isinstance(error, FloatingPointError):
                log.warning("%s: on rank %d %s", self.name, rank, message)
            self.warn(what, message)

    def warn(self, what: str, message: str) -> None:
        """Warn, unless there was a warning of this kind before."""
        if what not in self._warned:
            self._warned.add(what)
            with suppress(Warning):  # also where warnings are errors
                rank_zero_warn(f"{self.name}: {message.removesuffix('.')}. Training goes on; this is said once.")

    def forget(self) -> None:
        """Forget earlier warnings, as another run begins."""
        self._warned = set()
