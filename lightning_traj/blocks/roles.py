"""Roles of parameters in their network, recognised by the type of the module that owns them, and by names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

Shapes = Mapping[str, Sequence[int]]  # shapes of all parameters of a model, by ``plain_path`` of their names

ROLES: tuple[str, ...] = (
    *("q", "k", "v", "attn_out", "mlp_in", "mlp_gate", "mlp_out"),
    *("conv", "linear", "norm", "bias", "embedding", "position", "head", "lora_a", "lora_b", "other"),
)

# Parts of names that adapters, parametrizations and sharding add.
_WRAPPING = re.compile(
    r"\.(?:base_layer|original_module|modules_to_save\.\w+|parametrizations|original\d*|_\w+_wrapped_module)(?=\.|$)"
    r"|(?<=\.weight)_[gv]$"
)
_NORM = r"[^.]*norm(?!al(?!i[sz]))[^.]*|(?:[^.]*_)?(?:ln|bn|gn)(?:f|\d*|_[^.]*)"
# Classes of norms, but not of layers that contain one (LayerNormLinear).
_NORM_CLASS = re.compile(r"(?!.*(?:linear|mlp|conv|attention)).*norm(?!al(?!i[sz]))")

# Prefixes that tell the surroundings of a module. In attention:
_ATTENTION = r"(?:[^.]*att(?:n|ention)?_?\d*|mhs?a|sa)\.(?:(?:attention|self|output|heads\.\d+)\.)?"
# In the feed-forward half of a block, or one of its experts:
_MLP = r"(?:[^.]*(?:mlp|ffn|ffwd|feed_?forward|swiglu|densereludense|moe|expert)[^.]*|ff\d*)\.(?:net\.|\d+\.)?"
# Directly in a block: blocks are numbered, or called block or layer.
_BLOCK = r"(?:[^.]*(?:layer|block)[^.]*|[^.]*\d)\."
# At the top of the network, after the attributes of its wrappers.
_TOP = r"^(?:(?:model|module|net|network|base_model|backbone)\.)*(?:[a-z]\w*\.)?"


def _projection(letter: str, word: str) -> str:
    """Return a pattern for the names of the module that projects to queries, keys or values."""
    # Bare names such as q or value count only in attention, since reinforcement learning uses them too.
    affixed = (
        rf"(?:{letter}|{word})(?:_[ab])?_(?:proj|projection|lin|linear)|"
        rf"(?:w_?|to_|in_proj_|proj_|projection_|linear_|lin_)(?:{letter}|{word})(?:_[ab])?|{letter}_attn"
    )
    bare = rf"(?:{_ATTENTION}|(?:layers?|blocks?|h)[._]?\d+\.)(?:{letter}|{word})"
    return rf"{affixed}|{bare}"


# Roles and patterns of names, tried in order. A pattern matches from the start of a dotted part to the end of the name,
# ignoring "weight". A head may contain several levels of modules.
_RULES: tuple[tuple[str, str], ...] = (
    (
        "other",
        r"time_(?:mix_\w+|maa_\w+|decay(?:_\w+)?|first|faaaa)",
    ),  # RWKV: vectors, and their matrices
    ("lora_a", r".*\blora_(?:embedding_)?a\b.*"),
    ("lora_b", r".*\blora_(?:embedding_)?b\b.*"),
    ("norm", rf"(?:{_NORM})(?:\.(?:bias|gamma|beta|scale|gain))?"),
    ("position", r"(?:[^.]*_)?pos(?:itions?|itional)?(?:_?(?:emb|enc|bias|table)[^.]*|_[hw])?|wpe|pe"),
    ("position", r"(?:relative_)?attention_bias(?:es)?|rel(?:ative)?_embeddings?|distance_embedding"),
    ("bias", r"(?:[^.]*_)?bias(?:es)?(?:_[^.]*)?$"),
    ("linear", r"[^.]*router\.[^.]+"),  # before "head", since some call a router's last layer classifier
    ("mlp_in", rf"{_MLP}key"),  # RWKV
    ("mlp_out", rf"{_MLP}value"),
    ("q", _projection("q", "quer(?:y|ies)")),
    ("k", _projection("k", "keys?")),
    ("v", _projection("v", "values?")),
    ("mlp_out", rf"{_MLP}(?:wo|out_proj)"),
    ("attn_out", r"o_proj|out_lin|wo|w_o|to_out(?:\.0)?|attn_out"),
    ("attn_out", rf"{_ATTENTION}(?:o|out|output|out_proj|c_proj|proj|projection|proj_out|dense|linear_out)"),
    ("mlp_gate", rf"gate_proj|wi_0|w_gate|{_MLP}(?:w1|fc_1|fc1_g|gate_linear|linear_gate)"),
    ("mlp_in", r"c_fc|up_proj|dense_h_to_4h|intermediate\.dense|wi|wi_1"),
    ("mlp_in", rf"(?:{_MLP}|{_BLOCK})(?:fc1|fc_in|lin1|linear1|linear_1|ffn)"),
    ("mlp_in", rf"{_MLP}(?:w3|v1|w_1|fc_2|fc1_x|fc|dense1|dense_1|layer_1|w_in)"),
    ("mlp_in", rf"{_BLOCK}(?:[^.]+\.)?{_MLP}0(?:\.proj)?"),  # nn.Sequential(Linear, GELU, (Dropout,) Linear) in a block
    ("mlp_out", rf"{_BLOCK}(?:[^.]+\.)?{_MLP}[23]"),
    ("mlp_out", r"down_proj|dense_4h_to_h|ff_out"),
    ("mlp_out", rf"(?:{_MLP}|{_BLOCK})(?:fc2|fc_out|lin2|linear2|linear_2|ffn_output|output\.dense)"),
    ("mlp_out", rf"{_MLP}(?:w2|w_2|c_proj|proj|out|output|dense2|dense_2|layer_2|w_out|weights_out)"),
    ("head", r"(?:(?:\w*_)?(?<!multi_)heads?|(?:pre_)?classifier|cls)(?:\.[^.]+){0,3}"),
    ("head", r"score|qa_outputs|embed_out|unembed|output_projection|vocab_(?:projector|transform)|(?:to_)?logits"),
    ("head", rf"{_TOP}(?:fc|fc_out|out|output|proj_out|last_linear)"),
    ("embedding", r"wte|shared|[^.]*embed(?:s|dings?)?|(?:[^.]*_)?emb|(?:[^.]*_)?tokens?"),
    ("embedding", r"embed_(?:tokens?|words?|inputs?|in)"),
)
_PATTERNS = [(role, re.compile(rf"(?:^|\.)(?:{names})(?:[._]weight)?$")) for role, names in _RULES]

# Roles that a name can give to a parameter of a module of known type. If the name gives none, the type decides.
_ADAPTERS = {"lora_a", "lora_b"}
_SAID_BY_NAME = {
    "norm": _ADAPTERS,
    "position": _ADAPTERS,
    "conv": {*_ADAPTERS, "bias"},
    "embedding": {*_ADAPTERS, "position"},
    "linear": set(ROLES) - {"norm", "embedding", "position"},
}

# Output of a feed-forward layer by its input, as names of modules.
_HALVES = {
    "w12": "w3",
    "weights_in": "weights_out",
    "fc1": "fc2",
    "wi": "wo",
    "dense_h_to_4h": "dense_4h_to_h",
    "input_linear": "output_linear",
}
# Roles of three matrices with the output last. The gate is the matrix whose result passes through the activation.
_OUTPUT_LAST = {"w1": "mlp_gate", "w2": "mlp_in", "w3": "mlp_out"}


def plain_path(name: str) -> str:
    """Return a parameter's name in lower case, without the parts that adapters, parametrizations and sharding add."""
    return _WRAPPING.sub("", name.lower())


def role_of(
    name: str,
    entries_ndim: int,
    module: nn.Module | None = None,
    parent: nn.Module | None = None,
    shapes: Shapes | None = None,
) -> str:
    """Return the role of a parameter, one of `ROLES`.

    Weights and biases of norms are ``"norm"``. Every other bias is ``"bias"``, so that ``"q"`` or ``"mlp_in"`` means
    matrices only. A fused tensor as a whole is ``"linear"``, be it a query-key-value projection, or a gate in one
    tensor with its input.

    SwiGLU layers number their matrices in two ways: the output is ``w2`` in LLaMA and Mixtral, and ``w3`` in DINOv2 and
    EVA. Shapes decide, since the output projects back to the width. If all three are square, ``w2`` is taken for the
    output.

    Args:
        name: Qualified name without ``_orig_mod.``. Names of enclosing modules tell attention from feed-forward layers.
        entries_ndim: Number of dimensions of the tensor.
        module: The module that owns the parameter. If its type and the name contradict, the type counts. None if only
            names are known. A weight of one dimension is then taken for that of a norm (``downsample.1.weight``) unless
            it is called linear, and the bias of a norm cannot be recognised unless its name says so.
        parent: The module that has ``module`` as a child.
        shapes: Shapes of all parameters of the model, by ``plain_path`` of their names. None if they are not known.
    """
    path, shapes = plain_path(name), shapes or {}
    leaf = path.rpartition(".")[2]
    if isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        path = "layer." + ".".join(path.split(".")[-2:])  # net.linear1 becomes layer.linear1
    if "parametrizations." in name:
        module = None  # it is a list of parametrizations, whose type says nothing about the layer
    kind = _type_by_shape(path, entries_ndim, shapes) if module is None else _type_of(module, entries_ndim, leaf)
    if type(module).__name__ == "NonDynamicallyQuantizableLinear" and path.endswith("weight"):
        return "attn_out"  # torch.nn.MultiheadAttention uses this class for its output projection only
    if kind == "linear" and entries_ndim == 1 and leaf == "weight":
        return "linear"  # e3nn keeps matrices flat
    said = _SAID_BY_NAME.get(kind, set(ROLES))
    if "linear" in said and leaf != "bias" and (role := _role_by_shapes(path, shapes)):
        return role
    for role, pattern in _PATTERNS:
        if role in said and pattern.search(path):
            return role
    if kind:
        return kind
    if module is None and entries_ndim == 1 and leaf == "weight":
        return "norm"
    is_matrix = entries_ndim == 2 and re.search(r"weight|kernel|proj|^w(?:\d|_|$)", leaf)
    # One matrix for each expert, or for each relation of a graph.
    is_stack = entries_ndim == 3 and (leaf == "weight" or re.search(_MLP, path)) and not _is_vector(path, shapes)
    return "linear" if is_matrix or is_stack else "other"


def fuses_gate(path: str, shapes: Shapes) -> bool:
    """Whether the input of a feed-forward layer contains its gate: it then has twice as many features as the output.

    Args:
        path: ``plain_path`` of the name of the input's weight or bias.
        shapes: Shapes of all parameters of the model, as for ``role_of``.
    """
    owner = owner_of(path)
    if diffusers := re.fullmatch(r"(.*\bff(?:_context)?\.net\.)0\.proj\.(?:weight|bias)", path):
        both, output = (tuple(shapes.get(f"{diffusers[1]}{layer}.weight", ())) for layer in ("0.proj", "2"))
    elif owner in _HALVES:
        both, output = (_beside(path, other, shapes) for other in (owner, _HALVES[owner]))
    else:
        return False
    return len(both) == len(output) > 1 and (both[-2], both[-1]) == (2 * output[-1], output[-2])


def owner_of(path: str) -> str:
    """Return the name of the module that owns a weight or bias; of any other parameter its own name."""
    parts = path.split(".")
    return parts[-2] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts[-1]


def _beside(path: str, other: str, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the weight of a sibling of the module that owns a parameter; empty if there is none."""
    parts = path.split(".")
    if parts[-1] in ("weight", "bias"):
        parts[-2:] = [other, "weight"]
    else:
        parts[-1] = other
    return tuple(shapes.get(".".join(parts), ()))


def _role_by_shapes(path: str, shapes: Shapes) -> str:
    """Return the role of a matrix of a feed-forward layer if the shapes of its siblings tell it; else empty."""
    if fuses_gate(path, shapes):
        return "linear"
    owner = owner_of(path)
    if owner not in _OUTPUT_LAST or not re.search(rf"(?:^|\.){_MLP}{owner}(?:\.weight)?$", path):
        return ""
    first, second, third, gate = (_beside(path, other, shapes) for other in ("w1", "w2", "w3", "v1"))
    if owner == "w3" and _beside(path, "w12", shapes):
        return "mlp_out"
    if first and second and not third and not gate:  # a layer without a gate
        are_inputs = first == second and len(set(first[-2:])) > 1
        # Where c_proj is the output (Qwen), w2 passes through the activation.
        gate_role = "mlp_gate" if _beside(path, "c_proj", shapes) else "mlp_in"
        return "mlp_in" if owner == "w1" else gate_role if are_inputs else "mlp_out"
    is_output = first == second != third == (*first[:-2], *first[:-3:-1])
    return _OUTPUT_LAST[owner] if is_output else ""


def _is_vector(path: str, shapes: Shapes) -> bool:
    """Whether a tensor is known to have at most one dimension of more than one entry."""
    shape = shapes.get(path, ())
    return len(shape) > 0 and sum(size > 1 for size in shape) <= 1


def _type_of(module: nn.Module, ndim: int, leaf: str) -> str:
    """Return norm, conv, embedding, position or linear, by the classes of a module; else empty."""
    classes = [cls.__name__.lower() for cls in type(module).__mro__]
    if isinstance(module, _ConvNd) or any(_is_convolution(cls, ndim) for cls in classes):
        return "conv"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "position" if any("position" in cls for cls in classes) else "embedding"
    if isinstance(module, nn.Linear | nn.Bilinear):
        return "linear"
    if any(_NORM_CLASS.match(cls) for cls in classes):
        return "norm"
    # Linear layers of other libraries may keep their entries flat (e3nn), or have one matrix for each of several types.
    return "linear" if leaf == "weight" and any(cls.endswith("linear") for cls in classes) else ""


def _is_convolution(cls: str, ndim: int) -> bool:
    """Whether a class is a convolution with kernels; graph networks have other layers of that name, of 3 dimensions."""
    return "conv" in cls and (ndim > 3 or (ndim == 3 and re.search("conv(?:olution)?1d|minkowski", cls) is not None))


def _type_by_shape(path: str, ndim: int, shapes: Shapes) -> str:
    """Return linear for a flat weight of that name, conv for a weight of three or more dimensions, else empty.

    Weights of norms, of experts and of a graph's relations are not conv, whatever their shape.
    """
    if not path.endswith(".weight"):
        return ""
    if ndim == 1:
        return "linear" if re.fullmatch(r"(?:.*_)?lin(?:ear)?(?:_?\d+|_[^.]*)?", owner_of(path)) else ""
    if ndim < 3 or re.search(rf"(?:^|\.)(?:{_NORM})\.weight$|{_MLP}", path):
        return ""
    shape, bias = (shapes.get(f"{path.removesuffix('.weight')}.{leaf}", ()) for leaf in ("weight", "bias"))
    # One matrix for each relation of a graph, [relations, inputs, outputs].
    is_stack = len(shape) == 3 and len(bias) == 1 and bias[0] == shape[2] != shape[0]
    return "" if is_stack else "conv"
