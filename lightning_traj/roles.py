"""What a parameter does in its network: its role, told from the type of the module that owns it, and from names."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.conv import _ConvNd

ROLES: tuple[str, ...] = (
    *("q", "k", "v", "attn_out", "mlp_in", "mlp_gate", "mlp_out"),
    *("conv", "linear", "norm", "bias", "embedding", "position", "head", "lora_a", "lora_b", "other"),
)

# What adapters, parametrizations and sharding put into a name.
_WRAPPING = re.compile(
    r"\.(?:base_layer|original_module|modules_to_save\.\w+|parametrizations|original\d*|_\w+_wrapped_module)(?=\.|$)"
    r"|(?<=\.weight)_[gv]$"
)
_NORM = r"[^.]*norm(?!al(?!i[sz]))[^.]*|(?:[^.]*_)?(?:ln|bn|gn)(?:f|\d*|_[^.]*)"
# A class that is a norm, and no layer that has one inside (LayerNormLinear).
_NORM_CLASS = re.compile(r"(?!.*(?:linear|mlp|conv|attention)).*norm(?!al(?!i[sz]))")

# Where a module lies, by the modules around it. In attention:
_ATTENTION = r"(?:[^.]*att(?:n|ention)?_?\d*|mhs?a|sa)\.(?:(?:attention|self|output|heads\.\d+)\.)?"
# In the feed-forward half of a block, or one of its experts:
_MLP = r"(?:[^.]*(?:mlp|ffn|ffwd|feed_?forward|densereludense|moe|expert)[^.]*|ff\d*)\.(?:net\.|\d+\.)?"
# Right below a block: blocks are numbered, or say that they are blocks or layers.
_BLOCK = r"(?:[^.]*(?:layer|block)[^.]*|[^.]*\d)\."
# At the top, but for the attributes of whoever wraps the network.
_TOP = r"^(?:(?:model|module|net|network|base_model|backbone)\.)*(?:[a-z]\w*\.)?"


def _projection(letter: str, word: str) -> str:
    """Names of the module that projects to queries, keys or values."""
    # A bare q or value means that only in attention: reinforcement learning has its own.
    affixed = (
        rf"(?:{letter}|{word})(?:_[ab])?_(?:proj|projection|lin|linear)|"
        rf"(?:w_?|to_|in_proj_|proj_|projection_|linear_|lin_)(?:{letter}|{word})(?:_[ab])?|{letter}_attn"
    )
    bare = rf"(?:{_ATTENTION}|(?:layers?|blocks?|h)[._]?\d+\.)(?:{letter}|{word})"
    return rf"{affixed}|{bare}"


# Role and names, tried in order. A name is matched from the start of one of its parts to its end, "weight" aside;
# within it, a head may be several modules deep.
_RULES: tuple[tuple[str, str], ...] = (
    ("lora_a", r".*\blora_(?:embedding_)?a\b.*"),
    ("lora_b", r".*\blora_(?:embedding_)?b\b.*"),
    ("norm", rf"(?:{_NORM})(?:\.(?:bias|gamma|beta|scale|gain))?"),
    ("position", r"(?:[^.]*_)?pos(?:itions?|itional)?(?:_?(?:emb|enc|bias|table)[^.]*|_[hw])?|wpe|pe"),
    ("position", r"(?:relative_)?attention_bias(?:es)?|rel(?:ative)?_embeddings?|distance_embedding"),
    ("bias", r"(?:[^.]*_)?bias(?:es)?(?:_[^.]*)?$"),
    ("linear", r"[^.]*router\.[^.]+"),  # whose last layer some call a classifier
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
    ("mlp_in", rf"{_MLP}(?:w3|w_1|fc_2|fc1_x|fc|dense1|dense_1|layer_1|w_in)"),
    ("mlp_in", rf"{_BLOCK}(?:[^.]+\.)?{_MLP}0"),  # nn.Sequential(Linear, GELU, (Dropout,) Linear) in a block
    ("mlp_out", rf"{_BLOCK}(?:[^.]+\.)?{_MLP}[23]"),
    ("mlp_out", r"down_proj|dense_4h_to_h|ff_out"),
    ("mlp_out", rf"(?:{_MLP}|{_BLOCK})(?:fc2|fc_out|lin2|linear2|linear_2|ffn_output|output\.dense)"),
    ("mlp_out", rf"{_MLP}(?:w2|w_2|c_proj|proj|out|output|dense2|dense_2|layer_2|w_out)"),
    ("head", r"(?:(?:\w*_)?(?<!multi_)heads?|(?:pre_)?classifier|cls)(?:\.[^.]+){0,3}"),
    ("head", r"score|qa_outputs|embed_out|unembed|output_projection|vocab_(?:projector|transform)|(?:to_)?logits"),
    ("head", rf"{_TOP}(?:fc|fc_out|out|output|proj_out|last_linear)"),
    ("embedding", r"wte|shared|[^.]*embed(?:s|dings?)?|(?:[^.]*_)?emb|(?:[^.]*_)?tokens?"),
    ("embedding", r"embed_(?:tokens?|words?|inputs?|in)"),
)
_PATTERNS = [(role, re.compile(rf"(?:^|\.)(?:{names})(?:[._]weight)?$")) for role, names in _RULES]

# What names can still say about a parameter of a module of known type; where they say nothing, the type does.
_ADAPTERS = {"lora_a", "lora_b"}
_SAID_BY_NAME = {
    "norm": _ADAPTERS,
    "position": _ADAPTERS,
    "conv": {*_ADAPTERS, "bias"},
    "embedding": {*_ADAPTERS, "position"},
    "linear": set(ROLES) - {"norm", "embedding", "position"},
}


def role_of(name: str, entries_ndim: int, module: nn.Module | None = None, parent: nn.Module | None = None) -> str:
    """The role of a parameter, one of `ROLES`.

    Weights of norms and their biases are ``"norm"``; every other bias is ``"bias"``, so that ``"q"`` or ``"mlp_in"``
    means matrices only. A fused tensor as a whole is ``"linear"``, a query-key-value projection as well as a gate in
    one tensor with its input.

    Args:
        name: Qualified name, without ``_orig_mod.``; the modules on the way tell attention from feed-forward layers.
        entries_ndim: The tensor's number of dimensions.
        module: The module that owns the parameter. Where its type and the name contradict, the type counts. None
            where only names are known: then a weight of one dimension is taken for a norm's (``downsample.1.weight``),
            and a nameless norm's bias cannot be told from another.
        parent: The module whose child that is.
    """
    path = _WRAPPING.sub("", name.lower())
    if isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        path = "layer." + ".".join(path.split(".")[-2:])  # whatever it is called: net.linear1 is layer.linear1
    if "parametrizations." in name:
        module = None  # a list of parametrizations, which says nothing about the layer
    kind = _type_of(module, entries_ndim) if module is not None else _type_by_shape(path, entries_ndim)
    if type(module).__name__ == "NonDynamicallyQuantizableLinear" and path.endswith("weight"):
        return "attn_out"  # the class that torch.nn.MultiheadAttention has for it
    said = _SAID_BY_NAME.get(kind, set(ROLES))
    for role, pattern in _PATTERNS:
        if role in said and pattern.search(path):
            return role
    if kind:
        return kind
    leaf = path.rpartition(".")[2]
    if module is None and entries_ndim == 1 and leaf == "weight":
        return "norm"
    is_matrix = entries_ndim == 2 and re.search(r"weight|kernel|proj|^w(?:\d|_|$)", leaf)
    is_expert = entries_ndim == 3 and re.search(_MLP, path)  # one matrix for each expert
    return "linear" if is_matrix or is_expert else "other"


def _type_of(module: nn.Module, ndim: int) -> str:
    """Norm, conv, embedding, position or linear, by the classes that the module is made of; else empty."""
    classes = [cls.__name__.lower() for cls in type(module).__mro__]
    if isinstance(module, _ConvNd) or (ndim > 2 and any("conv" in cls for cls in classes)):
        return "conv"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "position" if any("position" in cls for cls in classes) else "embedding"
    if isinstance(module, nn.Linear | nn.Bilinear):
        return "linear"
    return "norm" if any(_NORM_CLASS.match(cls) for cls in classes) else ""


def _type_by_shape(path: str, ndim: int) -> str:
    """Conv for a weight of three or more dimensions, unless it is one of a norm or one for each expert; else empty."""
    if ndim < 3 or not path.endswith(".weight") or re.search(rf"(?:^|\.)(?:{_NORM})\.weight$|{_MLP}", path):
        return ""
    return "conv"
