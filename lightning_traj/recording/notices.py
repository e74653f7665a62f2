"""Notices about parameters that are left out, and about blocks that end and begin; each is given once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from lightning_traj.blocks import Partition, clean_name
from lightning_traj.recording.first_names import FirstNames

NAMED = 8  # parameters that a warning names at most

Warn: TypeAlias = Callable[[str, str], None]


class Notices:
    """Warns of parameters and blocks, once of each.

    Args:
        warn: Warns, given the kind of the warning and its text. A second warning of one kind may be dropped.
    """

    def __init__(self, warn: Warn) -> None:
        self._warn = warn
        self._named: set[str] = set()  # unreadable parameters that a warning was about

    def restart(self, unreadable: Mapping[str, str]) -> None:
        """Warn anew, as another run begins, of the parameters that are unreadable."""
        self._named = set()
        self.of_unreadable(unreadable)

    def of_unreadable(self, reasons: Mapping[str, str]) -> None:
        """Name parameters that are left out because they cannot be recorded.

        Args:
            reasons: Why each of them cannot be recorded, by name.
        """
        new = {name: why for name, why in reasons.items() if name not in self._named}
        if new:
            self._named.update(new)
            shown = list(new)[:NAMED]
            listed = "; ".join(f"{name!r} ({new[name]})" for name in shown)
            more = f" and {len(new) - len(shown)} more" if len(new) > len(shown) else ""
            self._warn(
                f"unreadable {sorted(new)}",
                f"parameters that cannot be recorded are left out of all measures, and everything else is recorded: "
                f"{listed}{more}. Pass exclude={shown!r}, or patterns such as '*.weight', to leave them out without "
                "this warning",
            )

    def of_new_blocks(self, names: FirstNames, partition: Partition) -> None:
        """Name recorded parameters that have left the model and those that came, perhaps as another form of them.

        Args:
            names: Parameters that left and came.
            partition: The recorded blocks.
        """
        recorded = {piece.parameter for pieces in partition.pieces for piece in pieces}
        if ended := [name for name in map(clean_name, names.ended) if name in recorded]:
            self._warn(
                "names",
                f"{', '.join(ended)} left the model, where their blocks end; {', '.join(map(clean_name, names.began))} "
                "came with memory and values of their own, and begin new blocks",
            )
