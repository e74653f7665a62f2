"""Parameters among the tensors of checkpoints, told from buffers by a model, a config or names."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parameter import is_lazy

from lightning_traj.blocks import clean_name, root_of
from lightning_traj.checkpoints.duplicates import is_expanded, tied
from lightning_traj.checkpoints.findings import changed_shapes
from lightning_traj.checkpoints.formats.checkpoint import Checkpoint
from lightning_traj.checkpoints.grouping import check_matched
from lightning_traj.tensors import has_entries
from lightning_traj.text import join_names
from lightning_traj.trajectory import Finding

# Entries of a config.json that are not taken, since they name code, kernels or weights elsewhere.
ELSEWHERE = re.compile(r"auto_map|implementation|kernels|backbone|timm|pretrained|quantization|_name_or_path")
# Counts in a config, and their largest values by the number of tensors or their largest dimension; others are made up.
MODULES, TO_A_TENSOR = re.compile(r"layer|block|depth|expert|stage|level|codebook|quantizer"), 16
WIDTHS, NARROW = re.compile(r"head|group|label"), 64
# Last parts of the names of buffers, which state dicts do not tell from parameters.
BUFFERS = (
    *("running_mean", "running_var", "num_batches_tracked", "n_averaged"),
    *("inv_freq", "cos_cached", "sin_cached", "freqs_cis", "masked_bias"),
)
# The same, if they are square in their last two dimensions, as masks of attention are: others are learned.
MASKS = ("mask", "tril", "triu", "causal_mask", "attn_mask", "attention_mask", "src_mask", "tgt_mask", "bias_mask")


def parameters_of(
    checkpoints: Sequence[Checkpoint], model: nn.Module | None, partial: bool = False
) -> tuple[dict[str, Tensor], nn.Module | None, str, list[Finding]]:
    """Return the floating-point parameters of a run.

    Args:
        checkpoints: Checkpoints of a series, in order.
        model: Model that tells parameters from buffers. None: the model of a Hugging Face folder's config.json, or
            else names, among which those of buffers of torch's and transformers' modules are known.
        partial: Whether checkpoints may share less than half of their parameters.

    Returns:
        Parameters on the meta device, by name; the model, wrapped so that its names are theirs; the kinds of tensors
        that were left out as buffers; and findings about the parameters.

    Raises:
        ValueError: The model has none of the tensors' names, or other shapes; or the checkpoints share too little.
    """
    tensors: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        tensors = {**tensors, **{name: like for name, like in checkpoint.shapes.items() if name not in tensors}}
    given = model is not None
    model = _fitted(model, tensors) if model is not None else network(checkpoints[-1], tensors)
    parameters = _parameters(model)
    tensors = {name: tensors[name] for name in [*parameters, *tensors] if name in tensors}  # in the model's order
    # Not of a given model, or called as buffers are: transformers saves some parameters by other names than its own.
    others = {name: tensor for name, tensor in tensors.items() if name not in parameters}
    left_out = {name for name, tensor in others.items() if given or _is_buffer(name, tensor)}
    # Two to a byte, which torch cannot take apart; and several entries in one place, which no optimizer can change.
    left_out |= {
        name for name, tensor in tensors.items() if str(tensor.dtype).startswith("torch.float4") or is_expanded(tensor)
    }
    counts = Counter(name.rpartition(".")[2] for name in tensors if name in left_out)
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    names = [name for name in tensors if name not in left_out and has_entries(tensors[name])]
    if not names:
        raise ValueError(_without_parameters(checkpoints, tensors))
    if not partial:
        check_matched(checkpoints, names)
    changed = changed_shapes(checkpoints, names)
    _check_shapes(type(model).__name__, parameters, {name: tensors[name] for name in names if name not in changed})
    twice = tied(checkpoints, [name for name in names if name not in changed])
    notes = list(changed.values())
    notes += [
        Finding("parameters", f"{other} and {first} are one parameter, saved twice: counted once.")
        for other, first in twice.items()
    ]
    return {name: tensors[name] for name in names if name not in changed and name not in twice}, model, kinds, notes


def parameter_count(checkpoint: Checkpoint) -> int:
    """Return the number of parameters of a checkpoint, as far as names tell them from buffers."""
    shapes = checkpoint.shapes.items()
    return sum(like.numel() for name, like in shapes if has_entries(like) and not _is_buffer(name, like))


def network(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """Return the model of a Hugging Face config.json on the meta device; None if transformers has none that fits.

    Only classes of transformers itself are made, of plain values: no code that comes with a checkpoint is run, and
    nothing that its config names is fetched.
    """
    config = _plain(checkpoint.config)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(config.get("model_type"), str):
        return None
    if not _is_modest(config, tensors):
        return None
    try:
        import transformers

        kind = getattr(transformers, architectures[0])
        if not issubclass(kind, transformers.PreTrainedModel):
            return None
        # Many layers times many experts.
        with torch.device("meta"), warnings.catch_warnings(), _at_most(4 * TO_A_TENSOR * len(tensors)):
            warnings.simplefilter("ignore")
            model = _fitted(kind(transformers.AutoConfig.for_model(**config)), tensors)
        _check_shapes(architectures[0], _parameters(model), checkpoint.shapes)
    except Exception:  # not installed, unknown to it, an unusual config, or another's: names will have to do
        return None
    return model


def _parameters(model: nn.Module | None) -> dict[str, Tensor]:
    named = () if model is None else model.named_parameters(remove_duplicate=False)
    return {clean_name(name): parameter for name, parameter in named}


def _plain(config: Any) -> Any:
    """Return a config without entries that make transformers look for code or weights elsewhere, or quantise."""
    if not isinstance(config, Mapping):
        return config
    return {key: _plain(value) for key, value in config.items() if not ELSEWHERE.search(key)}


def _is_modest(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a model of a config is no larger than these tensors allow; others take for ever, or all memory."""
    widest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    return all(
        not (MODULES.search(key) and count > TO_A_TENSOR * len(tensors))
        and not (WIDTHS.search(key) and count > max(widest, NARROW))
        for key, count in _counts(config)
    )


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the integers of a config, and the sums of its lists."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        else:
            yield key, _sum(value)


def _sum(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(map(_sum, value))
    return abs(value) if isinstance(value, int) else 0


@contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """Raise an error if more modules than this are made."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > modules:
            raise ValueError(f"more than {modules} modules")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _check_shapes(kind: str, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name in parameters and not is_lazy(parameters[name]) and parameters[name].shape != tensor.shape:
            raise ValueError(
                f"model={kind}: its {name} has the shape {list(parameters[name].shape)}, and in the checkpoints it is "
                f"{list(tensor.shape)}: pass a model of the same architecture."
            )


def _is_buffer(name: str, tensor: Tensor) -> bool:
    last = name.rpartition(".")[2]
    square = tensor.ndim > 1 and tensor.shape[-1] == tensor.shape[-2] > 1
    causal_mask = (last == "bias" and tensor.ndim == 4) or (last in MASKS and square)  # the former in older GPT-2
    return last in BUFFERS or causal_mask or not (tensor.is_floating_point() or tensor.is_complex())


def _without_parameters(checkpoints: Sequence[Checkpoint], tensors: Mapping[str, Tensor]) -> str:
    """Return the message for checkpoints without parameters, which lists their tensors and the remedy."""
    kinds: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if not tensor.numel():
            kinds["without entries"] += 1
        elif not (tensor.is_floating_point() or tensor.is_complex()):
            kinds[f"of {str(tensor.dtype).removeprefix('torch.')}"] += 1
        else:
            kinds[f"called {name.rpartition('.')[2]}, as buffers are"] += 1
    listed = join_names([f"{count} {kind}" for kind, count in kinds.most_common()], 4)
    return (
        f"{checkpoints[0].path} and the other checkpoints hold no parameters of floating-point or complex numbers. "
        f"Their tensors are {listed}. Pass checkpoints from before they were quantised or emptied, or a model (model=) "
        "that says which tensors are parameters."
    )


def _fitted(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the model, or a part of it, wrapped so that its parameters have the names of the tensors."""
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
