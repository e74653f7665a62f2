"""Parameters that are renamed midway: their blocks go on under their first names."""

from __future__ import annotations

import pickle
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning, WeightAveraging
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from launch import launch
from lightning_traj import EveryNEpochs, EveryNSteps, TrajectoryCallback
from lightning_traj.recording import first_names
from lightning_traj.recording.first_names import FirstNames
from lightning_traj.recording.parameters import Parameters
from models import Module, batches
from models import fit as train

FIRST = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


class Symmetric(nn.Module):
    """Any parametrization: what the layer sees is made of a tensor, which stays the trained one."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Scaled(nn.Module):
    """Of two tensors, neither of which has the values of the weight."""

    def forward(self, scale: Tensor, direction: Tensor) -> Tensor:
        return scale * direction

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.norm(), weight / weight.norm()


class Renaming(pl.Callback):
    """Changes the first layer in the second epoch, and keeps its weight, at the start and after each epoch.

    Args:
        change: What is done to the layer, before the first step of epoch 1.
        trained: The tensor that is to be followed from then on.
        back: What is done before the first step of epoch 2, after which the weight is the weight again.
    """

    def __init__(
        self,
        change: Callable[[nn.Module], object],
        trained: Callable[[Any], Tensor],
        back: Callable[[nn.Module], object] | None = None,
    ) -> None:
        self.change, self.trained, self.back = change, trained, back
        self.changed = False
        self.thetas: list[Tensor] = []

    def take(self, module: Any) -> None:
        tensor = self.trained(module.net[0]) if self.changed else module.net[0].weight
        self.thetas.append(tensor.detach().double().flatten().clone())

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.take(pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        (optimizer,) = trainer.optimizers
        if trainer.current_epoch == 1:
            self.change(pl_module.net[0])
            self.changed = True
        elif trainer.current_epoch == 2 and self.back is not None:
            self.back(pl_module.net[0])
            self.changed = False
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if new := [p for p in pl_module.parameters() if id(p) not in known]:
            optimizer.add_param_group({"params": new})

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.take(pl_module)

    @property
    def gram(self) -> np.ndarray:
        theta = torch.stack(self.thetas)
        return (theta @ theta.T).numpy()


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)


def original(layer: Any) -> Tensor:
    found: Tensor = layer.parametrizations.weight.original
    return found


# Of each: the change, the tensor that goes on, the way back, and the blocks that come with it.
CHANGES: dict[str, tuple[Any, Any, Any, list[str]]] = {
    "pruned": (pruned, lambda layer: layer.weight_orig, None, []),
    "pruned and back": (pruned, lambda layer: layer.weight_orig, lambda layer: prune.remove(layer, "weight"), []),
    "parametrized": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
        original,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        [],
    ),
    "orthogonal": (parametrizations.orthogonal, original, None, []),
    "spectral norm": (parametrizations.spectral_norm, original, None, []),
    "spectral norm of old": (nn.utils.spectral_norm, lambda layer: layer.weight_orig, None, []),
    "weight norm": (
        parametrizations.weight_norm,
        lambda layer: layer.parametrizations.weight.original1,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        ["net.0.parametrizations.weight.original0"],
    ),
    "weight norm of old": (
        nn.utils.weight_norm,
        lambda layer: layer.weight_v,
        nn.utils.remove_weight_norm,
        ["net.0.weight_g"],
    ),
}


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_block_goes_on_under_its_first_name(fit: Any, change: str, snapshot: Any) -> None:
    *what, new = CHANGES[change]
    change_, trained, back = what
    callback, renaming = TrajectoryCallback(snapshot=snapshot), Renaming(change_, trained, back)
    fit(callback, renaming, max_epochs=4)
    trajectory = callback.trajectory
    assert [block.name for block in trajectory.blocks] == FIRST + new
    np.testing.assert_allclose(trajectory.gram("net.0.weight"), renaming.gram, rtol=1e-5)
    expected = float((renaming.thetas[-1] - renaming.thetas[0]).norm())
    assert trajectory.summary("net.0.weight")["displacement"] == pytest.approx(expected, rel=1e-5)
    block = next(block for block in trajectory.blocks if block.name == "net.0.weight")
    assert (block.layer, block.numel) == ("net.0", renaming.thetas[0].numel())


def test_pruning_by_lightning(fit: Any) -> None:
    """As the whole model is recorded without pruning's names: four blocks, of the tensors that are trained."""
    thetas: list[Tensor] = []

    class Kept(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.parameters = list(pl_module.parameters())
            self.take()

        def take(self, *_: Any) -> None:
            thetas.append(torch.cat([p.detach().double().flatten() for p in self.parameters]).clone())

        on_train_epoch_end = take

    callback = TrajectoryCallback()
    fit(Kept(), callback, ModelPruning("l1_unstructured", amount=0.5))
    trajectory = callback.trajectory
    assert [block.name for block in trajectory.blocks] == FIRST
    theta = torch.stack(thetas)
    np.testing.assert_allclose(trajectory.gram("*"), (theta @ theta.T).numpy(), rtol=1e-5)
    assert trajectory.summary()["displacement"] == pytest.approx(float((theta[-1] - theta[0]).norm()), rel=1e-5)


class Copied(nn.Module):
    """Weight normalisation whose direction begins with a copy of the weight, and not with its memory."""

    def forward(self, scale: Tensor, direction: Tensor) -> Tensor:
        return scale * direction / direction.norm()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.norm(), weight.clone()


@pytest.mark.parametrize("schedule", [EveryNEpochs(1), EveryNSteps(1)])
@pytest.mark.parametrize("batch", [0, 2])
def test_a_direction_with_the_values_of_the_weight_goes_on(fit: Any, batch: int, schedule: Any) -> None:
    """Its values are those of the weight at the switch only: before it is first trained, at the end of no epoch."""

    class Switched(Renaming):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            pass

        def on_train_batch_start(self, trainer: Any, pl_module: Any, _: Any, batch_idx: int) -> None:
            if (trainer.current_epoch, batch_idx) == (1, batch):
                super().on_train_epoch_start(trainer, pl_module)

    renaming = Switched(
        lambda layer: parametrize.register_parametrization(layer, "weight", Copied()),
        lambda layer: layer.parametrizations.weight.original1,
    )
    callback = TrajectoryCallback(schedule=schedule, window=0)
    fit(callback, renaming, max_epochs=3)
    trajectory = callback.trajectory
    assert [block.name for block in trajectory.blocks] == [*FIRST, "net.0.parametrizations.weight.original0"]
    ends = np.flatnonzero(trajectory.steps % 4 == 0)
    np.testing.assert_allclose(trajectory.gram("net.0.weight")[np.ix_(ends, ends)], renaming.gram, rtol=1e-5)


def test_two_tensors_of_other_values_are_new_blocks_and_this_is_said_once(fit: Any) -> None:
    callback = TrajectoryCallback()
    renaming = Renaming(
        lambda layer: parametrize.register_parametrization(layer, "weight", Scaled()),
        lambda layer: layer.parametrizations.weight.original1,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(callback, renaming, max_epochs=4)
    names = [f"net.0.parametrizations.weight.original{i}" for i in range(2)]
    trajectory = callback.trajectory
    assert [block.name for block in trajectory.blocks] == FIRST + names
    said = [str(warning.message) for warning in caught if "left the model" in str(warning.message)]
    assert len(said) == 1
    assert all(name in said[0] for name in ("net.0.weight", *names))
    # The old block ends, and what it had stays: its last value is that of the end of epoch 0.
    theta = torch.stack([renaming.thetas[min(i, 1)] for i in range(5)])
    np.testing.assert_allclose(trajectory.gram("net.0.weight"), (theta @ theta.T).numpy(), rtol=1e-5)
    theta = torch.stack([renaming.thetas[max(i, 2)] for i in range(5)])
    np.testing.assert_allclose(trajectory.gram(names[1]), (theta @ theta.T).numpy(), rtol=1e-5)


class Adapted(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Parameter(torch.zeros(2, layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x @ self.lora_A.T @ self.lora_B.T


class Changed(Module):
    """Modules are moved about before the second epoch."""

    change: Callable[[Any], object]

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            type(self).change(self)


def changing(change: Callable[[Any], object]) -> Callable[[], Module]:
    return type("Changing", (Changed,), {"change": staticmethod(change)})


def adapt(module: Any) -> None:
    module.net[0] = Adapted(module.net[0])


def insert(module: Any) -> None:
    """The layers behind move on, and the new one has the name and the shape of the first."""
    (first, *others) = module.net
    new = nn.Linear(first.in_features, first.in_features)
    torch.nn.init.eye_(new.weight)
    module.net = nn.Sequential(new, nn.Identity(), first, *others)


def replace(module: Any) -> None:
    """New objects under the old names, trained from now on."""
    for layer in (module.net[0], module.net[2]):
        for name, p in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(p.detach().clone()))
    module.trainer.strategy.setup_optimizers(module.trainer)


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (adapt, ["net.0.lora_A", "net.0.lora_B"]),
        (insert, ["net.0~2.weight", "net.0~2.bias"]),
        (replace, []),
    ],
)
def test_modules_that_move(fit: Any, change: Any, new: list[str]) -> None:
    thetas: list[Tensor] = []

    class Kept(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.parameters = list(pl_module.parameters())
            self.on_train_epoch_end(trainer, pl_module)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            parameters = list(pl_module.parameters()) if change is replace else self.parameters
            thetas.append(torch.cat([p.detach().double().flatten() for p in parameters]).clone())

    callback = TrajectoryCallback()
    fit(Kept(), callback, module=changing(change))
    trajectory = callback.trajectory
    assert [block.name for block in trajectory.blocks] == FIRST + new
    theta = torch.stack(thetas)
    np.testing.assert_allclose(trajectory.gram(lambda block: block.name in FIRST), (theta @ theta.T).numpy(), rtol=1e-5)


def test_layers_that_change_places() -> None:
    names, one, other = FirstNames(), nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
    assert names.of({"a": one, "b": other}) == {"a": one, "b": other}
    assert names.of({"a": other, "b": one}) == {"b": other, "a": one}
    assert names.aliases == {"a": "b", "b": "a"}
    resumed = FirstNames()
    resumed.restart(names.aliases)
    assert list(resumed.of({"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.ones(3))})) == ["b", "a"]


def test_parameters_can_be_converted_meanwhile(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``module.to`` swaps tensors, as it does of quantised and sharded ones: which weak references to them forbid."""
    monkeypatch.setattr("torch.__future__._swap_module_params_on_conversion", True)

    class Converted(Module):
        def on_train_epoch_start(self) -> None:
            for p in self.net.parameters():
                p.grad = None
            self.net.to("cpu", torch.float32)

    callback = TrajectoryCallback(schedule=EveryNSteps(1))
    fit(callback, module=Converted)
    assert [block.name for block in callback.trajectory.blocks] == FIRST


def test_no_parameters_are_kept_when_a_run_is_over() -> None:
    names, weight = FirstNames(), nn.Parameter(torch.ones(3))
    names.of({"weight": weight})
    known = weakref.ref(weight)
    names.release()
    del weight
    assert known() is None


def test_names_outlive_the_process_and_the_run() -> None:
    names, weight, bias = FirstNames(), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    names.of({"weight": weight, "bias": bias})
    names.of({"weight_orig": weight, "bias": bias})
    copied = pickle.loads(pickle.dumps(names))
    names.release()
    for some in (names, copied):
        assert list(some.of({"weight_orig": nn.Parameter(torch.ones(3)), "bias": bias})) == ["weight", "bias"]


def pairs(count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and the tensors that take their places: half of them with the same memory, the others with copies."""
    old: dict[str, Tensor] = {f"{i}.weight": nn.Parameter(torch.full((2,), float(i))) for i in range(count)}
    new: dict[str, Tensor] = {}
    for i, p in enumerate(old.values()):
        values = p.detach().clone() if i % 2 else p.data
        new[f"{i}.parametrizations.weight.original1"] = nn.Parameter(values)
    return old, new


def test_what_is_compared_grows_with_the_number_of_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"_memory": 0, "_are_equal": 0}

    def counted(name: str, original: Any) -> Any:
        def count(*tensors: Tensor) -> Any:
            counts[name] += 1
            return original(*tensors)

        return count

    for name in counts:
        monkeypatch.setattr(first_names, name, counted(name, getattr(first_names, name)))
    old, new = pairs(200)
    names = FirstNames()
    names.of(old)
    assert counts == {"_memory": 0, "_are_equal": 0}
    assert list(names.of(new)) == list(old)
    assert counts == {"_memory": 400, "_are_equal": 100}
    names.of(new)
    assert counts == {"_memory": 400, "_are_equal": 100}  # nothing is compared where nothing is new


def test_steps_with_the_same_tensors_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[nn.Module] = []
    monkeypatch.setattr(Parameters, "of", lambda self, module: looks.append(module))
    layer, parameters = nn.Linear(2, 2), Parameters()
    optimizers = [torch.optim.SGD([p]) for p in layer.parameters()]
    for _ in range(3):
        for optimizer in optimizers:
            parameters.follow(layer, optimizer)
    assert len(looks) == 2
    optimizers[0].param_groups[0]["params"] = [nn.Parameter(torch.ones(2, 2))]
    for optimizer in optimizers:
        parameters.follow(layer, optimizer)
    assert len(looks) == 3
    parameters.release()
    parameters.follow(layer, optimizers[0])
    assert len(looks) == 4


def test_only_directions_go_by_their_values() -> None:
    """Many tensors begin with equal values: biases, and what adapters begin with."""
    names = FirstNames()
    names.of({"net.bias": nn.Parameter(torch.zeros(3))})
    assert list(names.of({"net.lora": nn.Parameter(torch.zeros(3))})) == ["net.lora"]
    assert (names.ended, names.began) == (("net.bias",), ("net.lora",))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("net.weight", "net.weight_orig"),
        ("net.weight_orig", "net.weight"),
        ("net.weight", "net.parametrizations.weight.original"),
        ("net.parametrizations.weight.original", "net.weight"),
        ("weight", "parametrizations.weight.original"),
        ("net.weight", "net._orig_mod.weight_orig"),
    ],
)
def test_without_tensors_to_compare_names_and_shapes_tell(before: str, after: str) -> None:
    def names() -> FirstNames:
        names = FirstNames()
        names.of({before: nn.Parameter(torch.ones(3)), "net.bias": nn.Parameter(torch.ones(3))})
        return pickle.loads(pickle.dumps(names))

    bias = nn.Parameter(torch.ones(3))
    assert list(names().of({after: nn.Parameter(torch.ones(3)), "net.bias": bias})) == [before, "net.bias"]
    # Not a tensor of another shape, and none beside that of the first name itself.
    assert list(names().of({after: nn.Parameter(torch.ones(4)), "net.bias": bias})) == [after, "net.bias"]
    both = {after: nn.Parameter(torch.ones(3)), before: nn.Parameter(torch.ones(3))}
    assert list(names().of(both)) == [after, before]


def test_a_tensor_of_another_name_and_shape_is_new() -> None:
    names, weight = FirstNames(), nn.Parameter(torch.ones(4, 4))
    names.of({"weight": weight})
    weight.data = torch.ones(6)
    assert list(names.of({"original": weight})) == ["original"]


@pytest.mark.parametrize("track", ["gradient", "update", "first_moment"])
@pytest.mark.parametrize("schedule", [EveryNSteps(1), EveryNEpochs(1)])
def test_quantities_of_renamed_parameters(fit: Any, track: str, schedule: Any) -> None:
    """They go on as if nothing had been renamed: the parametrization changes no value."""

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone()

    def recorded(*callbacks: Any) -> Any:
        callback = TrajectoryCallback(track=track, schedule=schedule)
        fit(callback, *callbacks)
        return callback.trajectory

    there_and_back = Renaming(
        lambda layer: parametrize.register_parametrization(layer, "weight", Same()),
        original,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    )
    ours, theirs = recorded(there_and_back), recorded()
    assert ours.blocks == theirs.blocks
    np.testing.assert_array_equal(ours.anchored, theirs.anchored)


def wrap(module: Any) -> None:
    module.net[0] = nn.Sequential(OrderedDict(base_layer=module.net[0]))


@pytest.mark.parametrize("averaging", [[WeightAveraging], []])
def test_averages_of_renamed_parameters(fit: Any, averaging: list[Any]) -> None:
    """Torch averages parameters in order, and so the change has to leave that."""

    def module(change: Callable[[Any], object]) -> Callable[[], Module]:
        class Averaged(changing(change)):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                if not averaging:
                    self.average = torch.optim.swa_utils.AveragedModel(self.net)

            def on_train_batch_end(self, *_: Any) -> None:
                if not averaging:
                    self.average.update_parameters(self.net)

        return Averaged

    found = []
    for change in (wrap, lambda _: None):
        callback = TrajectoryCallback(track="average")
        fit(*[kind() for kind in averaging], callback, module=module(change))
        found.append(callback.trajectory)
    ours, theirs = found
    assert [block.name for block in ours.blocks] == FIRST
    np.testing.assert_array_equal(ours.anchored, theirs.anchored)


def test_patterns_and_coarser_blocks_go_by_first_names(fit: Any) -> None:
    for settings, names in (
        ({"include": "net.0.*"}, FIRST[:2]),
        ({"exclude": "*.weight"}, FIRST[1::2]),
        ({"blocks": "layer"}, ["net.0", "net.2"]),
        ({"blocks": lambda block: block.name.upper()}, [name.upper() for name in FIRST]),
    ):
        callback = TrajectoryCallback(**settings)
        fit(callback, Renaming(pruned, lambda layer: layer.weight_orig))
        assert [block.name for block in callback.trajectory.blocks] == names
        assert (callback.trajectory.local[-1, :, 2, 2] > 0).all()  # none of them rests


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_a_resumed_run_goes_on_with_the_same_blocks(fit: Any, tmp_path: Path, snapshot: Any) -> None:
    """The module of the resumed run is pruned from the start."""

    class Pruned(Module):
        def __init__(self) -> None:
            super().__init__()
            pruned(self.net[0])

        def configure_optimizers(self) -> Any:  # with the parameters in the order of the saved one
            parameters = dict(self.named_parameters())
            names = ["net.0.weight_orig", *FIRST[1:]]
            return torch.optim.SGD([parameters[name] for name in names], lr=0.1, momentum=0.9)

    def renaming() -> Renaming:
        return Renaming(pruned, lambda layer: layer.weight_orig)

    whole = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path / "whole")
    fit(whole, renaming(), max_epochs=4)
    first = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path / "parts")
    fit(first, renaming(), max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("TrajectoryCallback"))
    assert state["aliases"] == {"net.0.weight_orig": "net.0.weight"}
    resumed = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path / "parts")
    trainer = fit(resumed, module=Pruned, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    ours, theirs = resumed.trajectory, whole.trajectory
    assert [block.name for block in ours.blocks] == FIRST
    assert ours.steps.tolist() == theirs.steps.tolist() == [0, 4, 8, 12, 16]
    np.testing.assert_allclose(ours.anchored, theirs.anchored, rtol=1e-6, atol=1e-9)
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)
    assert again["callbacks"][resumed.state_key]["aliases"] == state["aliases"]


# In the second of two fits, or in a run that is resumed: how a layer is before and after.
BETWEEN: dict[str, tuple[Any, Any]] = {
    "pruned": (lambda layer: None, pruned),
    "no more pruned": (pruned, lambda layer: prune.remove(layer, "weight")),
    "parametrized": (lambda layer: None, CHANGES["parametrized"][0]),
    "no more parametrized": (
        CHANGES["parametrized"][0],
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "pruned instead of parametrized": (
        CHANGES["parametrized"][0],
        lambda layer: (parametrize.remove_parametrizations(layer, "weight"), pruned(layer)),
    ),
}


def made(*changes: Callable[[nn.Module], object]) -> Callable[[], Module]:
    """A module whose first layer was changed, and whose optimizer has its parameters in one order for all."""

    class Made(Module):
        def __init__(self) -> None:
            super().__init__()
            for change in changes:
                change(self.net[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(sorted(self.parameters(), key=lambda p: (p.dim(), len(p))), lr=0.1, momentum=0.9)

    return Made


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("change", BETWEEN)
def test_a_layer_is_changed_between_two_fits(fit: Any, change: str, snapshot: Any) -> None:
    before, after = BETWEEN[change]
    callback = TrajectoryCallback(snapshot=snapshot)
    trainer = fit(callback, module=made(before), max_epochs=2)
    names = [block.name for block in callback.trajectory.blocks]
    after(trainer.lightning_module.net[0])
    trainer.fit_loop.max_epochs = 4
    trainer.fit(trainer.lightning_module, batches())
    trajectory = callback.trajectory
    assert [block.name for block in trajectory.blocks] == names
    assert trajectory.steps.tolist() == [0, 4, 8, 12, 16]
    assert (trajectory.local[-1, :, 2, 2] > 0).all()  # none of them rests


@pytest.mark.parametrize("then", ["a second fit", "another Trainer"])
def test_lightning_prunes_and_the_run_goes_on(fit: Any, tmp_path: Path, then: str) -> None:
    def pruning() -> ModelPruning:
        return ModelPruning("l1_unstructured", amount=0.2)

    first = callback = TrajectoryCallback()
    trainer = fit(first, pruning(), max_epochs=2)
    if then == "a second fit":
        trainer.fit_loop.max_epochs = 4
        trainer.fit(trainer.lightning_module, batches())
    else:
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        callback = TrajectoryCallback()
        fit(callback, pruning(), max_epochs=4, ckpt_path=tmp_path / "run.ckpt")
    assert [block.name for block in callback.trajectory.blocks] == FIRST
    assert callback.trajectory.steps.tolist() == [0, 4, 8, 12, 16]
    assert (callback.trajectory.local[-1, :, 2, 2] > 0).all()


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
@pytest.mark.parametrize("shapes", ["saved", "not saved"])
@pytest.mark.parametrize("change", BETWEEN)
def test_a_run_is_resumed_with_a_changed_layer(
    fit: Any, tmp_path: Path, change: str, shapes: str, snapshot: Any
) -> None:
    before, after = BETWEEN[change]
    first = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path)
    fit(first, module=made(before), max_epochs=2).save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    if shapes == "not saved":  # as by the first releases
        del checkpoint["callbacks"][first.state_key]["shapes"]
    checkpoint["state_dict"] = made(before, after)().state_dict()  # the user's own task: weights in the new form
    torch.save(checkpoint, tmp_path / "run.ckpt")
    resumed = TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path)
    fit(resumed, module=made(before, after), max_epochs=3, ckpt_path=tmp_path / "run.ckpt")
    assert resumed.trajectory.blocks == first.trajectory.blocks
    assert resumed.trajectory.steps.tolist() == [0, 4, 8, 12]
    assert (resumed.trajectory.local[-1, :, 2, 2] > 0).all()


def test_what_was_left_out_is_left_out_when_it_is_renamed(fit: Any, tmp_path: Path) -> None:
    def callback() -> TrajectoryCallback:
        return TrajectoryCallback(exclude="*.weight")

    first, resumed = callback(), callback()
    fit(first, module=made(), max_epochs=2).save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    checkpoint["state_dict"] = made(pruned)().state_dict()
    torch.save(checkpoint, tmp_path / "run.ckpt")
    fit(resumed, module=made(pruned), max_epochs=3, ckpt_path=tmp_path / "run.ckpt")
    assert [block.name for block in resumed.trajectory.blocks] == FIRST[1::2]


def test_a_parametrization_of_another_shape_does_not_go_on(fit: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[::2]

        def right_inverse(self, x: Tensor) -> Tensor:
            return x.repeat_interleave(2, 0)

    callback = TrajectoryCallback()
    trainer = fit(callback, max_epochs=1)
    parametrize.register_parametrization(trainer.lightning_module.net[0], "weight", Doubled())
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(ValueError, match=r"has the parameter 'net\.0\.weight', which the model lacks"):
        trainer.fit(trainer.lightning_module, batches())


def test_training_is_left_alone(fit: Any) -> None:
    states = []
    for callbacks in ([TrajectoryCallback(schedule=EveryNSteps(1))], []):
        trainer = fit(*callbacks, Renaming(pruned, lambda layer: layer.weight_orig))
        states.append(trainer.lightning_module.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def on_two_ranks(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    callback = TrajectoryCallback()
    renaming = Renaming(pruned, lambda layer: layer.weight_orig)
    train(callback, renaming, root=folder, strategy="ddp", devices=2)
    trajectory = callback.trajectory
    return [block.name for block in trajectory.blocks], trajectory.gram("net.0.weight"), renaming.gram


def test_ranks_follow_alike(tmp_path: Path) -> None:
    (names, gram, expected), (others, other, _) = launch(on_two_ranks, 2, tmp_path)
    assert names == others == FIRST
    np.testing.assert_array_equal(gram, other)
    np.testing.assert_allclose(gram, expected, rtol=1e-5)


class NewHead(Module):
    """Gets another head in its second epoch: the block of the old one ends."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1 and not isinstance(self.net[2], nn.Sequential):
            self.change()
            self.trainer.strategy.setup_optimizers(self.trainer)

    def change(self) -> None:
        self.net[2] = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))

    def on_load_checkpoint(self, checkpoint: Any) -> None:
        self.change()


@pytest.mark.parametrize("snapshot", ["sketch", "full"])
def test_a_run_whose_blocks_have_ended_goes_on(fit: Any, tmp_path: Path, snapshot: Any) -> None:
    def callback() -> TrajectoryCallback:
        return TrajectoryCallback(snapshot=snapshot, dirpath=tmp_path, window=0)

    first = callback()
    trainer = fit(first, module=NewHead, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = callback()
    fit(resumed, module=NewHead, ckpt_path=tmp_path / "run.ckpt", max_epochs=3)
    assert resumed.trajectory.steps.tolist() == [0, 4, 8, 12]
    assert [block.name for block in resumed.trajectory.blocks] == [block.name for block in first.trajectory.blocks]
    ended = resumed.trajectory.gram("net.2.weight")
    np.testing.assert_allclose(ended[2:, 2:], ended[1, 1], rtol=1e-12)  # it rests where it was
    trainer.fit_loop.max_epochs = 4  # and so does a second fit of the same Trainer
    trainer.fit(trainer.lightning_module, batches())
    assert first.trajectory.steps.tolist() == [0, 4, 8, 12, 16]
