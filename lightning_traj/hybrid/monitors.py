"""Logged values that conditions look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from lightning_traj.callbacks import read_callback_metrics


class Monitors:
    """Values of logged quantities, as they stand at the start of each epoch.

    A quantity that validations log counts when a validation has logged it, and any other one as it stands when an epoch
    starts. Lightning keeps the latest value of each.

    Args:
        names: Names of the quantities.

    Attributes:
        pending: Values that the start of the next epoch is going to note.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.pending: dict[str, float] = {}
        self._values: dict[str, list[tuple[int, float]]] = {}  # of each one that was logged: epochs and finite values
        self.start()

    def start(self) -> None:
        """Get ready for a fit."""
        self._validations = 0
        self._validated: set[str] = set()  # those that validations log
        self._before: dict[str, Any] = {}  # values before the running validation

    def validation_starts(self, trainer: Any) -> None:
        """Remember the values of before a validation."""
        self._before = self._logged(trainer)

    def validation_ends(self, trainer: Any) -> None:
        """Take the values that the validation has logged."""
        self._validations += 1
        for name, value in self._logged(trainer).items():
            # A value of before is still there if the validation has not logged another one.
            if value is not self._before.get(name):
                self._validated.add(name)
                self.pending[name] = float(value)

    def logged_in_training(self, trainer: Any) -> dict[str, float]:
        """Return the present values of the quantities that no validation logs."""
        values = self._logged(trainer)
        return {name: float(value) for name, value in values.items() if name not in self._validated}

    def note(self, epoch: int) -> None:
        """Remember the pending values as those at the start of an epoch."""
        for name, value in self.pending.items():
            values = self._values.setdefault(name, [])
            if isfinite(value):
                values.append((epoch, value))
        self.pending = {}

    @property
    def missing(self) -> list[str]:
        """Names of the quantities that were never logged."""
        return [name for name in self.names if name not in self._values]

    def complaint(self, trainer: Any) -> str:
        """Return a warning about quantities that were not logged although they could have been; empty if none is."""
        if not (self.missing and trainer.current_epoch and (self._validations or not trainer.enable_validation)):
            return ""
        known = ", ".join(map(str, read_callback_metrics(trainer))) or "nothing"
        return f"{', '.join(self.missing)} was not logged so far, but {known}"

    def since(self, name: str | None, epoch: int) -> list[float]:
        """Return the values of a quantity at the starts of the epochs after this one."""
        return [value for at, value in self._values.get(name or "", []) if at > epoch]

    def state_dict(self) -> dict[str, Any]:
        """Return everything as primitives."""
        values = {name: list(listed) for name, listed in self._values.items()}
        return {"values": values, "pending": dict(self.pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self._values = {name: [(at, value) for at, value in listed] for name, listed in state["values"].items()}
        self.pending = dict(state["pending"])

    def _logged(self, trainer: Any) -> dict[str, Any]:
        logged = read_callback_metrics(trainer) if self.names else {}
        return {name: logged[name] for name in self.names if name in logged}
