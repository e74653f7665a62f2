"""The weights themselves, and their average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lightning_traj.recording.parameters import Parameters
from lightning_traj.recording.quantities.quantity import Quantity, Training


class Weights(Quantity):
    """The parameters themselves."""

    at_steps = False

    def read(self, training: Training) -> dict[str, Tensor]:  # noqa: D102
        return self.parameters.of(training.module)


class Average(Quantity):
    """The averaged parameters: of the whole module, or of an ``AveragedModel`` within it."""

    at_steps = False

    def __init__(self) -> None:
        super().__init__()
        self._averaged = Parameters()  # those of the average, which are renamed independently of the module's own

    def restart_names(self, aliases: Mapping[str, str], shapes: Mapping[str, Sequence[int] | None]) -> None:  # noqa: D102
        super().restart_names(aliases, shapes)
        self._averaged.names.restart(aliases, shapes)

    def release(self) -> None:  # noqa: D102
        super().release()
        self._averaged.release()

    def check(self, training: Training) -> None:  # noqa: D102
        if training.averaged is None and not any(isinstance(m, AveragedModel) for m in training.module.modules()):
            raise ValueError(
                'track="average": there is no WeightAveraging or EMAWeightAveraging among the callbacks, and no '
                "torch.optim.swa_utils.AveragedModel in the module; add one, or track something else."
            )

    def read(self, training: Training) -> dict[str, Tensor]:  # noqa: D102
        if training.averaged is not None:
            return self._averaged.of(training.averaged.module)
        module = training.module
        averaged = next(child for child in module.modules() if isinstance(child, AveragedModel))
        found: dict[str, Tensor] = self._averaged.of(averaged.module)
        # The average may be of a part of the module. It then goes by the names that the part's parameters have in the
        # whole, or had when the average was made.
        present = self.parameters.of(module) | dict(module.named_parameters())
        own: dict[str, Any] = {name: p.shape for name, p in present.items() if p is not found.get(name)}
        for prefix in dict.fromkeys(name.rpartition(next(iter(found)))[0] for name in own):
            if all(own.get(prefix + name) == p.shape for name, p in found.items()):
                return {prefix + name: p for name, p in found.items()}
        return found
