"""What is frozen is free: it does not move by a bit, costs no gradient, and goes on as if nothing had been."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_traj import After, AtSteps, HybridTraining
from models import BATCHES, CLASSES, INPUTS, TwoOptimizers, Validated, batches, mlp, seed


def normed() -> nn.Sequential:
    return mlp(nn.BatchNorm1d(8))


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, fused=True),
    "SGD, one by one": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False),
}


class Normed(Validated):
    """With BatchNorm, one of the optimizers, and a learning rate that falls with every epoch."""

    def __init__(self, optimizer: str = "SGD", net: nn.Module | None = None) -> None:
        super().__init__(normed() if net is None else net)
        self.kind = optimizer

    def configure_optimizers(self) -> Any:
        weights, others = ([p for p in self.parameters() if (p.ndim > 1) is is_weight] for is_weight in (True, False))
        optimizer = OPTIMIZERS[self.kind]([{"params": weights}, {"params": others, "lr": 0.02}])
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


class Watch(pl.Callback):
    """The state of the module after every step, and which parameters then required gradients or had one."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.trained: list[list[str]] = []
        self.with_gradient: list[list[str]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.with_gradient.append([name for name, p in module.named_parameters() if p.grad is not None])

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.states.append({name: value.clone() for name, value in module.state_dict().items()})
        self.trained.append([name for name, p in module.named_parameters() if p.requires_grad])


NORM = ["net.2.weight", "net.2.bias"]
REST = ["net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"]


def by_hand(module: Any, frozen_steps: range, steps: int) -> list[dict[str, Tensor]]:
    """The same training without Lightning and without freezing: gradients of what is trained are asked for alone."""
    seed()
    module = module()
    module.train()
    (optimizer,), (scheduler,) = module.configure_optimizers()
    parameters, states = dict(module.named_parameters()), []
    for step in range(steps):
        batch = list(batches())[step % BATCHES]
        trained = {name: p for name, p in parameters.items() if step not in frozen_steps or name in NORM}
        gradients = torch.autograd.grad(module.loss(batch), list(trained.values()))
        for p in parameters.values():
            p.grad = None
        for p, gradient in zip(trained.values(), gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        if step % BATCHES == BATCHES - 1:
            scheduler.step()
        states.append({name: value.clone() for name, value in module.state_dict().items()})
    return states


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_stands_still_and_the_rest_trains_as_by_hand(fit: Any, optimizer: str) -> None:
    watch, hybrid = Watch(), HybridTraining(train="norm", when=2, thaw=4)
    fit(hybrid, watch, module=lambda: Normed(optimizer), max_epochs=6)
    frozen = range(2 * BATCHES, 4 * BATCHES)
    for step in frozen:
        assert watch.trained[step] == NORM == watch.with_gradient[step]
        for name in REST:
            assert torch.equal(watch.states[step][name], watch.states[frozen.start - 1][name])
    assert len(watch.trained[frozen.stop]) == 6
    expected = by_hand(lambda: Normed(optimizer), frozen, 6 * BATCHES)
    torch.testing.assert_close(watch.states, expected, rtol=0, atol=0)
    assert not torch.equal(expected[-1]["net.0.weight"], expected[frozen.start]["net.0.weight"])


def test_gradients_that_were_never_set_to_none_are_gone(fit: Any) -> None:
    class Zeros(Normed):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

    watch = Watch()
    fit(HybridTraining(when=1), watch, module=Zeros, max_epochs=2, limit_val_batches=0)  # validation clears gradients
    assert torch.equal(watch.states[BATCHES - 1]["net.0.weight"], watch.states[-1]["net.0.weight"])


def test_without_freezing_in_time_everything_moves(fit: Any) -> None:
    watch = Watch()
    fit(watch, module=Normed, max_epochs=1)
    for name in REST:
        assert not torch.equal(watch.states[0][name], watch.states[1][name])


class WeightGradients(TorchDispatchMode):
    """Counts the gradients of weights that a backward pass computes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution_backward" in str(function):
            inputs, weights, _ = args[-1]
            self.count["inputs"] += inputs
            self.count["weights"] += weights
        return function(*args, **(kwargs or {}))


class Convolutions(nn.Sequential):
    """Three convolutions, each before a norm."""

    def __init__(self) -> None:
        layers = [(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4)), *((nn.Conv1d(4, 4, 2), nn.BatchNorm1d(4)) for _ in "12")]
        super().__init__(nn.Unflatten(1, (1, INPUTS)), *(m for pair in layers for m in pair), nn.Flatten())
        self.append(nn.Linear(8, CLASSES))


@pytest.mark.parametrize(
    ("train", "weights", "inputs"),
    [("norm", 0, 2), (["norm", "net.5.*"], 1, 2), (["net.5.*", "layer:net.6"], 1, 0)],
)
def test_gradients_of_frozen_weights_are_not_computed(fit: Any, train: Any, weights: int, inputs: int) -> None:
    counts = []

    class Counting(Normed):
        def backward(self, loss: Tensor) -> None:
            with WeightGradients() as counter:
                super().backward(loss)
            counts.append(dict(counter.count))

    fit(HybridTraining(train=train, when=1), module=lambda: Counting("SGD", Convolutions()), max_epochs=2)
    assert counts[0] == {"weights": 3, "inputs": 2}
    assert counts[-1] == {"weights": weights, "inputs": inputs}  # and below the last one trained, nothing at all


@pytest.mark.parametrize("goes_on", [True, False])
def test_running_statistics_go_on_or_stop(fit: Any, goes_on: bool) -> None:
    watch = Watch()
    hybrid = HybridTraining(train="norm", when=1, thaw=2, running_statistics=goes_on)
    trainer = fit(hybrid, watch, module=Normed, max_epochs=3)
    first, frozen, thawed = (watch.states[epoch * BATCHES + 3] for epoch in range(3))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[f"net.2.{name}"], frozen[f"net.2.{name}"]) is not goes_on
        assert not torch.equal(thawed[f"net.2.{name}"], frozen[f"net.2.{name}"])
    assert trainer.lightning_module.net[2].track_running_stats
    # It is normalised by the batch all the same: weights are those of a run whose statistics go on.
    other = Watch()
    fit(HybridTraining(train="norm", when=1, thaw=2), other, module=Normed, max_epochs=3)
    assert torch.equal(watch.states[-1]["net.0.weight"], other.states[-1]["net.0.weight"])


@pytest.mark.parametrize("keep_state", [True, False])
def test_state_of_optimizers_is_kept_or_released(fit: Any, keep_state: bool) -> None:
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            state = trainer.optimizers[0].state
            seen.append([int(state[p]["step"]) if p in state else None for p in module.parameters()])

    fit(HybridTraining(when=1, thaw=2, keep_state=keep_state), Look(), module=lambda: Normed("AdamW"), max_epochs=3)
    rest = {True: [4, 4, 8], False: [4, None, 4]}[keep_state]
    assert seen == [[steps, steps, norm, norm, steps, steps] for steps, norm in zip(rest, [4, 8, 12], strict=True)]


def test_what_the_user_froze_is_never_thawed(fit: Any) -> None:
    class Partly(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.net[0].weight.requires_grad_(False)

    watch = Watch()
    hybrid = HybridTraining(train="norm", when=1, thaw=2)
    trainer = fit(hybrid, watch, module=Partly, max_epochs=3)
    assert [len(watch.trained[epoch * BATCHES]) for epoch in range(3)] == [5, 2, 5]
    assert "net.0.weight" not in watch.trained[-1]
    assert [event.trained for event in hybrid.timeline.events] == [16, 51]
    assert not trainer.lightning_module.net[0].weight.requires_grad


def test_the_module_is_put_back_when_the_fit_ends(fit: Any) -> None:
    class Breaking(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 2:
                assert not module.net[0].weight.requires_grad
                self.module = module
                raise ZeroDivisionError

    breaking, hybrid = Breaking(), HybridTraining(when=1, running_statistics=False)
    with pytest.raises(ZeroDivisionError):
        fit(hybrid, breaking, module=Normed)
    trainer = fit(HybridTraining(when=1, running_statistics=False), module=Normed)
    for module in (breaking.module, trainer.lightning_module):
        assert all(p.requires_grad for p in module.parameters())
        assert module.net[2].track_running_stats


class TwoNormed(TwoOptimizers):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(INPUTS, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, CLASSES))))


def test_an_optimizer_may_be_left_without_anything_to_train(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    hybrid = HybridTraining(train="layer:net.2", when=AtSteps([8]))  # two steps a batch
    fit(hybrid, watch, module=TwoNormed, max_epochs=2)
    assert hybrid.timeline.events[0].step == 8
    for name in ("net.0.weight", "net.0.bias"):
        assert torch.equal(watch.states[3][name], watch.states[-1][name])
    assert not torch.equal(watch.states[3]["net.2.0.weight"], watch.states[-1]["net.2.0.weight"])
    assert "leaves nothing to train to optimizer 0" in caplog.text


def test_but_not_under_a_grad_scaler(fit: Any) -> None:
    def train(select: Any) -> None:
        precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
        fit(HybridTraining(train=select, when=1), module=TwoNormed, max_epochs=2, plugins=[precision])

    with pytest.raises(ValueError, match=r"optimizer 0 would be left without anything to train.*bf16-mixed"):
        train("layer:net.2")
    train("bias")  # some of each


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_optimizer_steps(fit: Any, accumulate: int) -> None:
    watch = Watch()
    hybrid = HybridTraining(when=AtSteps([3]), thaw=AtSteps([5]))
    fit(hybrid, watch, module=Normed, max_epochs=4, accumulate_grad_batches=accumulate)
    assert [(event.what, event.step) for event in hybrid.timeline.events] == [("frozen", 3), ("thawed", 5)]
    norms, weights = (
        [not torch.equal(a[name], b[name]) for a, b in pairwise(watch.states)] for name in (NORM[0], REST[0])
    )
    stepped = [i for i, moved in enumerate([True, *norms] if accumulate == 1 else norms) if moved]
    moved = [i for i, moved in enumerate([True, *weights] if accumulate == 1 else weights) if moved]
    assert moved == [batch for step, batch in enumerate(stepped, start=1) if step not in (4, 5)]


def test_compiled_modules_are_compiled_once_more(fit: Any) -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    def compiled() -> Normed:
        torch._dynamo.reset()
        module = Normed()
        module.net = torch.compile(module.net, backend=counting)
        return module

    hybrid = HybridTraining(train="norm", when=2)
    watch = Watch()
    fit(hybrid, watch, module=compiled, max_epochs=5, limit_val_batches=0, num_sanity_val_steps=0)
    assert len(graphs) == 2
    assert [name.replace("_orig_mod.", "") for name in watch.trained[-1]] == NORM


def test_layers_by_turns(fit: Any) -> None:
    """A layer that is frozen for an epoch, trained for one and so on, moves in half of the epochs."""
    watch = Watch()
    hybrid = HybridTraining(train="norm", when=After(1), thaw=After(1), by="layer")
    fit(hybrid, watch, module=Normed, max_epochs=4)
    assert [len(watch.trained[epoch * BATCHES]) for epoch in range(4)] == [6, 2, 6, 2]
    assert hybrid.frozen == ("net.0", "net.3")
