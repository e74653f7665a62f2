"""Which tensors of checkpoints are parameters, and what else is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_traj.blocks import block_entries, clean_name
from lightning_traj.findings import changed_shapes, tied
from lightning_traj.formats import Checkpoint
from lightning_traj.partition import root_of

# Last parts of the names of what state dicts hold besides parameters, without telling them apart.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "inv_freq", "masked_bias", "n_averaged")


def parameters_of(
    checkpoints: Sequence[Checkpoint], model: nn.Module | None
) -> tuple[dict[str, Tensor], nn.Module | None, str, list[str]]:
    """The floating-point parameters of a run.

    Args:
        checkpoints: In order.
        model: Tells parameters from buffers; None: names do, which know those of torch's and transformers' modules.

    Returns:
        Parameters on the meta device, by name; the model, wrapped such that its names are theirs; what was left out for
        being no parameter, in words; and what is wrong with the others, in sentences.

    Raises:
        ValueError: the model has none of the tensors' names.
    """
    tensors: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        tensors = checkpoint.shapes() | tensors
    if model is not None:
        model = _fitted(model, tensors)
        parameters = {clean_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
        left_out = [name for name in tensors if name not in parameters]
    else:
        left_out = [name for name, tensor in tensors.items() if _is_buffer(name, tensor)]
    counts = Counter(name.rpartition(".")[2] for name in left_out)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    names = [name for name in tensors if name not in left_out and block_entries(tensors[name]) is not None]
    changed = changed_shapes(checkpoints, names)
    twice = tied(checkpoints, [name for name in names if name not in changed])
    notes = list(changed.values())
    notes += [f"{other} and {first} are one parameter, saved twice: counted once." for other, first in twice.items()]
    return {name: tensors[name] for name in names if name not in changed and name not in twice}, model, kinds, notes


def network(config: Mapping[str, Any]) -> nn.Module | None:
    """The model of a Hugging Face config.json on the meta device; None where transformers does not know it.

    Only classes of transformers itself are made: no code that comes with a checkpoint is run.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(config.get("model_type"), str):
        return None
    try:
        import transformers

        kind = getattr(transformers, architectures[0])
        if not issubclass(kind, transformers.PreTrainedModel):
            return None
        with torch.device("meta"):
            model = kind(transformers.AutoConfig.for_model(**config))
    except Exception:  # not installed, unknown to it, or an unusual config: names will have to do
        return None
    return model if isinstance(model, nn.Module) else None


def _is_buffer(name: str, tensor: Tensor) -> bool:
    last = name.rpartition(".")[2]
    causal_mask = last == "bias" and tensor.ndim == 4  # of GPT-2 and GPT-NeoX in older files
    return last in BUFFERS or causal_mask or not (tensor.is_floating_point() or tensor.is_complex())


def _fitted(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model, or the part of it, wrapped such that its parameters have the names of the tensors."""
    parts = [model, *model.children()]  # the body of a model may be saved without its head
    prefixes = dict.fromkeys(("", root_of(list(tensors)), *(f"{name.partition('.')[0]}." for name in tensors)))
    best, count = model, 0
    for part in parts:
        names = [clean_name(name) for name, _ in part.named_parameters()]
        for prefix in prefixes:
            if (found := sum(prefix + name in tensors for name in names)) > count:
                best, count = _wrapped(part, prefix), found
    if not count:
        raise ValueError(
            f"model={type(model).__name__} has none of the parameters of the checkpoints, such as "
            f"{next(iter(tensors), '')!r}: pass a model of the same architecture."
        )
    return best


def _wrapped(model: nn.Module, prefix: str) -> nn.Module:
    for name in reversed(prefix.split(".")[:-1]):
        model = nn.ModuleDict({name: model})
    return model
