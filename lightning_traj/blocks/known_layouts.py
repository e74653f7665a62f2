"""Layouts of fused tensors in well-known libraries, and signs that a tensor may be fused.

A layer is recognised by the names of its class and of its parent's classes, and by their attributes, so no library has
to be imported. If there is any doubt the answer is None: a wrong split would be worse than no split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from torch import Tensor, nn

from lightning_traj.blocks.fused import FusedLayout
from lightning_traj.blocks.roles import Shapes, fuses_gate, owner_of, plain_path

_THIRDS = FusedLayout({"q": 1, "k": 1, "v": 1})
_HALVES = FusedLayout({"k": 1, "v": 1})
# The gate is the part that passes through the activation, like gate_proj in Llama, whatever a library calls it.
_GATE_FIRST = FusedLayout({"mlp_gate": 1, "mlp_in": 1})
_GATE_LAST = FusedLayout({"mlp_in": 1, "mlp_gate": 1})


def known_layout(module: nn.Module, parent: nn.Module | None, parameter: str) -> FusedLayout | None:
    """Return the layout of a parameter; None if it is not fused, or not known to be.

    Args:
        module: The module that holds the parameter itself.
        parent: The module that has ``module`` as a child. If ``module`` is the ``base_layer`` of a wrapper such as
            PEFT's LoRA layer, the module that has the wrapper as a child.
        parameter: Name of the parameter in ``module``: ``"weight"``, ``"bias"``, ``"in_proj_weight"``, …
    """
    tensor = getattr(module, parameter, None)
    if not isinstance(tensor, Tensor):
        return None
    try:
        if isinstance(module, nn.MultiheadAttention):
            is_fused = parameter in ("in_proj_weight", "in_proj_bias") and tensor.shape[0] == 3 * module.embed_dim
            layout = _THIRDS if is_fused else None
        elif parameter in ("gate_up_proj", "gate_up_proj_bias"):
            layout = _experts(module, tensor, is_bias=parameter.endswith("bias"))
        elif parent is not None and parameter in ("weight", "bias") and (out := _out_features(module)) is not None:
            layout = _of_child(_child_name(module, parent), module, parent, out)
            # A shard of a flattened tensor, or packed bits, does not have the shape that the layer's attributes imply.
            if layout is not None and (tensor.ndim == 0 or tensor.shape[layout.axis] != out):
                return None
        else:
            return None
        if layout is not None:
            layout.check(parameter, tensor.shape)
    except (AttributeError, ValueError):  # a class of the same name with other attributes, or sizes that do not fit
        return None
    return layout


def layout_by_shapes(name: str, shapes: Shapes) -> FusedLayout | None:
    """Return the layout of a SwiGLU's gate and input in one tensor, if its name and shapes leave no doubt, else None.

    These are the ``w12`` of xformers, DINOv2 and EVA, and the ``weights_in`` of DINOv2 in transformers. They are
    recognised without a module, so that state dicts are split in the same way as models.

    Args:
        name: Qualified name of the parameter.
        shapes: Shapes of all parameters of the model, by ``roles.plain_path`` of their names.
    """
    path = plain_path(name)
    return _GATE_FIRST if owner_of(path) in ("w12", "weights_in") and fuses_gate(path, shapes) else None


def looks_fused(name: str, shape: Sequence[int], shapes: Shapes | None = None) -> bool:
    """Whether the name and shape of a tensor of unknown layout suggest that several parts are fused in it.

    Args:
        name: Qualified name of the parameter.
        shape: Shape of the parameter.
        shapes: Shapes of all parameters of the model, by ``roles.plain_path`` of their names. They reveal a gate that
            lies in one tensor with its input.
    """
    path = [part for part in name.split(".") if part not in ("base_layer", "linear")] or [""]  # LoRA layers' own
    words = "_".join(path[-2:] if path[-1] in ("weight", "bias") else path[-1:]).lower()
    if not shape or max(shape) < 2 or "norm" in words:
        return False
    if "in_proj" in words and "qkv" not in words:  # a frequent name of plain layers
        return len(shape) == 2 and shape[0] == 3 * shape[1]
    if fuses_gate(plain_path(name), shapes or {}):
        return True
    return re.search(r"qkv|kqv|query_key|c_attn|w_pack|(^|_)(kv|qk|w12|w13)(_|$)|gate_up|up_gate", words) is not None


def _child_name(module: nn.Module, parent: nn.Module) -> str:
    children = parent.named_children()
    return next((name for name, child in children if module in (child, getattr(child, "base_layer", None))), "")


def _classes(module: nn.Module) -> list[str]:
    """Return the classes of a module as "library.Name", its own first."""
    return [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(module).__mro__]


def _out_features(layer: nn.Module) -> int | None:
    """Return the number of output features of a layer that is linear in its weight, and None for any other layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return layer.out_channels
    return _number(layer, "nf") if "transformers.Conv1D" in _classes(layer) else None


def _number(module: nn.Module, *names: str) -> int:
    """Return the first of these attributes that a module or its ``config`` has."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(holder, name, None), int):
                return value
    raise AttributeError(f"{type(module).__name__} has none of {names}")


def _per_head(parent: nn.Module) -> FusedLayout:
    return FusedLayout(_THIRDS.parts, groups=_number(parent, "num_heads", "num_attention_heads"))


def _shares(q: int, k: int, v: int, groups: int = 1) -> FusedLayout:
    unit = gcd(q, k, v)
    return FusedLayout({"q": q // unit, "k": k // unit, "v": v // unit}, groups)


def _few_keys(parent: nn.Module) -> FusedLayout:
    kv_heads = _number(parent, "num_key_value_heads")
    return _shares(_number(parent, "num_heads", "num_attention_heads"), kv_heads, kv_heads)


def _multi_query(parent: nn.Module) -> FusedLayout:
    return _shares(_number(parent, "num_heads"), 1, 1) if _number(parent, "multi_query") else _per_head(parent)


def _falcon(parent: nn.Module) -> FusedLayout:
    if not _number(parent, "new_decoder_architecture"):
        return _multi_query(parent)
    heads, groups = _number(parent, "num_heads"), _number(parent, "num_kv_heads")
    return _shares(heads // groups, 1, 1, groups)


def _big_code(parent: nn.Module) -> FusedLayout | None:
    # transformers cuts the keys and values of cross-attention into pieces that are too short for them
    return None if _number(parent, "is_cross_attention") else _multi_query(parent)


# Layers in transformers: name of the layer, classes that own it, layout
_TABLE: tuple[tuple[str, str, FusedLayout | Callable[[nn.Module], FusedLayout | None]], ...] = (
    ("query_key_value", "GPTNeoX GPTNeoXJapanese Bloom Persimmon", _per_head),
    ("query_key_value", "Falcon", _falcon),
    ("qkv_proj", "CodeGen", FusedLayout({"q": 1, "v": 1, "k": 1}, groups=4)),  # in this order, for four TPU cores
    ("qkv_proj", "Phi3 Phi4Multimodal", _few_keys),
    ("qkv_proj", "MiniMaxLightning", _per_head),
    ("Wqkv", "Dbrx", _few_keys),
    ("Wqkv", "Mpt ModernBert", _THIRDS),
    ("in_proj", "DisentangledSelf", _per_head),  # DeBERTa
    ("c_attn", "GPTBigCode", _big_code),
    ("gate_up_proj", "Phi3 Phi4Multimodal Glm Glm4 Glm4vText GlmImageText GlmOcrText Dia Dots3NoteAudio", _GATE_FIRST),
    ("gate_up_proj", "Phi4MultimodalAudio", _GATE_LAST),
    ("input_linear", "GraniteMoeShared GraniteMoeHybrid GraniteMoeSWA", _GATE_FIRST),
    ("Wi", "ModernBert ModernBertDecoder", _GATE_FIRST),
)
_KNOWN = {
    (child, f"transformers.{model}{suffix}"): rule
    for child, models, rule in _TABLE
    for model in models.split()
    for suffix in ("Attention", "MLP")  # no model has a layer of one name in both
}


def _of_child(child: str, layer: nn.Module, parent: nn.Module, out: int) -> FusedLayout | None:
    classes = _classes(parent)
    for name in classes:
        if (rule := _KNOWN.get((child, name))) is not None:
            return rule(parent) if callable(rule) else rule
    if child == "c_attn":
        return _gpt2(layer, parent, out)
    if child in ("attn", "qkv") and any(name.endswith(".CausalSelfAttention") for name in classes):
        return _litgpt(child, parent, out)
    if child in ("qkv", "to_qkv"):
        return _vision(child, layer, parent, out)
    if child == "fc1" and "timm.GluMlp" in classes:
        return _GATE_LAST if _number(parent, "gate_last") else _GATE_FIRST
    return None


def _gpt2(layer: nn.Module, parent: nn.Module, out: int) -> FusedLayout | None:
    """Return the layout in GPT-2 and its family in transformers (``Conv1D``), nanoGPT and minGPT (``Linear``)."""
    if isinstance(layer, nn.Linear):
        is_nano = _number(parent, "n_head") > 0 and out == 3 * _number(parent, "n_embd") and hasattr(parent, "c_proj")
        return _THIRDS if is_nano else None
    parts = (_HALVES if getattr(parent, "is_cross_attention", False) else _THIRDS).parts
    return FusedLayout(parts, axis=-1) if out == len(parts) * _number(parent, "split_size") else None


def _litgpt(child: str, parent: nn.Module, out: int) -> FusedLayout | None:
    """Return the layout in LitGPT: ``attn`` has q's, k and v group by group, its successor ``qkv`` all q's first."""
    config: Any = getattr(parent, "config", None)
    heads, groups = config.n_head, config.n_query_groups
    if out != (heads + 2 * groups) * config.head_size:
        return None
    return _shares(heads // groups, 1, 1, groups) if child == "attn" else _shares(heads, groups, groups)


def _vision(child: str, layer: nn.Module, parent: nn.Module, out: int) -> FusedLayout | None:
    """Return the layout in vision transformers of timm, torchvision and transformers, and in copies of timm's."""
    classes = _classes(parent)
    is_timm = any(name.startswith("timm.") for name in classes)
    is_known = is_timm or any(re.match(r"torchvision\.|transformers\..*Attention$", name) for name in classes)
    if not is_known:
        own = all(hasattr(parent, name) for name in ("num_heads", "scale", "attn_drop", "proj", "proj_drop"))
        return _THIRDS if own and isinstance(layer, nn.Linear) and out == 3 * layer.in_features else None
    heads = _number(parent, "num_heads", "num_attention_heads", "heads", "groups", "n_heads")
    if any(hasattr(parent, name) for name in ("dim_qk", "dim_head_qk")):  # LambdaNet, HaloNet: unlike all others
        return None
    if hasattr(parent, "key_dim"):  # LeViT and its successors: values wider than keys, head by head
        return _shares(key := _number(parent, "key_dim"), key, _number(parent, "val_dim"), heads)
    if hasattr(parent, "kv_dim"):
        return _shares(_number(parent, "q_dim"), kv := _number(parent, "kv_dim"), kv)
    if getattr(parent, "head_first", False):
        return _per_head(parent)
    layout = _HALVES if getattr(parent, "use_global", False) else _THIRDS  # GCViT's global queries come from elsewhere
    return layout if out % (heads * len(layout.parts)) == 0 else None


def _experts(module: nn.Module, tensor: Tensor, is_bias: bool) -> FusedLayout | None:
    """Return the layout of all experts of a layer in one tensor, [experts, features, features], in transformers."""
    names = [name for name in _classes(module) if re.match(r"transformers\..*Experts$", name)]
    if not names or tensor.ndim != (2 if is_bias else 3):
        return None
    if "transformers.Llama4TextExperts" in names:  # the only class without these two attributes
        is_transposed, in_one_piece = 1, 1
    else:
        is_transposed, in_one_piece = _number(module, "is_transposed"), _number(module, "is_concatenated")
    axis = -1 if is_bias or is_transposed else -2
    return FusedLayout(_GATE_FIRST.parts, groups=1 if in_one_piece else tensor.shape[axis] // 2, axis=axis)
