"""Roles that shapes tell: gate, input and output of SwiGLU layers, and layers of graph and equivariant networks.

The libraries that have these layers are not installed; the layers here have the same names, classes and shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lightning_traj import from_checkpoints
from lightning_traj.blocks.partition import Partition
from lightning_traj.blocks.roles import plain_path, role_of

WIDTH, HIDDEN = 6, 16


def roles(parameters: dict[str, Tensor], model: nn.Module | None = None) -> dict[str, str]:
    """The role of each block, biases left out."""
    blocks = Partition().extended(parameters, model).blocks
    return {block.name: block.role for block in blocks if block.role != "bias"}


def both_ways(model: nn.Module) -> list[dict[str, str]]:
    """Roles by types, names and shapes, and by names and shapes alone, as in a file."""
    parameters = dict(model.named_parameters())
    return [roles(parameters, model), roles(parameters)]


def within(name: str, module: nn.Module) -> nn.Module:
    """A network that has a module under this name."""
    for part in reversed(name.split(".")):
        module = nn.ModuleDict({part: module})
    return module


class Numbered(nn.Module):
    """A layer of three matrices, numbered in the order of LLaMA (output w2) or DINOv2 and EVA (output w3)."""

    def __init__(self, output: int, width: int = WIDTH, hidden: int = HIDDEN, bias: bool = False) -> None:
        super().__init__()
        for i in (1, 2, 3):
            sizes = (hidden, width) if i == output else (width, hidden)
            setattr(self, f"w{i}", nn.Linear(*sizes, bias=bias))


class SwiGLUFFN(nn.Module):
    """DINOv2's and xformers': gate and input in one layer."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.w12 = nn.Linear(WIDTH, 2 * HIDDEN, bias=bias)
        self.w3 = nn.Linear(HIDDEN, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        y: Tensor = self.w3(silu(gate) * value)
        return y


class Dinov2SwiGLUFFN(nn.Module):
    """That of transformers before release 5, as the files on the Hub have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weights_in = nn.Linear(WIDTH, 2 * HIDDEN)
        self.weights_out = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.weights_in(x).chunk(2, dim=-1)
        y: Tensor = self.weights_out(silu(gate) * value)
        return y


class EvaSwiGLU(Numbered):
    def __init__(self) -> None:
        super().__init__(output=3, bias=True)
        self.ffn_ln = nn.LayerNorm(HIDDEN)


class Plain(nn.Module):
    """A layer without a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)


class Stacked(nn.Module):
    """All experts of a layer in one tensor each, with LLaMA's numbers or DBRX's."""

    def __init__(self, value: str) -> None:
        super().__init__()
        for name in ("w1", value):
            setattr(self, name, nn.Parameter(torch.randn(4, HIDDEN, WIDTH)))
        self.w2 = nn.Parameter(torch.randn(4, WIDTH, HIDDEN))


def named(module: str, pairs: dict[str, str]) -> dict[str, str]:
    return {f"{module}.{name}": role for name, role in pairs.items()}


LLAMA = {"w1.weight": "mlp_gate", "w2.weight": "mlp_out", "w3.weight": "mlp_in"}
OUTPUT_LAST = {"w1.weight": "mlp_gate", "w2.weight": "mlp_in", "w3.weight": "mlp_out"}
SPLIT = {"w12.weight:mlp_gate": "mlp_gate", "w12.weight:mlp_in": "mlp_in", "w3.weight": "mlp_out"}

# Library: where the layer lies, the layer, and the roles in it.
LAYERS: dict[str, tuple[str, Callable[[], nn.Module], dict[str, str]]] = {
    "LLaMA": ("layers.0.feed_forward", lambda: Numbered(output=2), LLAMA),
    "torchtune": ("layers.0.mlp", lambda: Numbered(output=2, bias=True), LLAMA),
    "Mixtral": ("model.layers.0.block_sparse_moe.experts.3", lambda: Numbered(output=2), LLAMA),
    "torchtitan's experts": (
        "layers.0.moe.experts",
        lambda: Stacked("w3"),
        {name.removesuffix(".weight"): role for name, role in LLAMA.items()},
    ),
    "DBRX": ("blocks.0.ffn.experts.mlp", lambda: Stacked("v1"), {"w1": "mlp_gate", "v1": "mlp_in", "w2": "mlp_out"}),
    "DINOv3": ("blocks.0.mlp", lambda: Numbered(output=3, bias=True), OUTPUT_LAST),
    "EVA": ("blocks.0.mlp", EvaSwiGLU, {**OUTPUT_LAST, "ffn_ln.weight": "norm", "ffn_ln.bias": "norm"}),
    "DINOv2": ("blocks.0.mlp", SwiGLUFFN, SPLIT),
    "xformers": ("encoder.0.swiglu", lambda: SwiGLUFFN(bias=False), SPLIT),
    "DINOv2 in transformers": (
        "encoder.layer.0.mlp",
        Dinov2SwiGLUFFN,
        {
            "weights_in.weight:mlp_gate": "mlp_gate",
            "weights_in.weight:mlp_in": "mlp_in",
            "weights_out.weight": "mlp_out",
        },
    ),
    "all square": ("layers.0.feed_forward", lambda: Numbered(2, width=HIDDEN), LLAMA),
    "all square, too": ("layers.0.feed_forward", lambda: Numbered(3, width=HIDDEN), LLAMA),  # nothing tells
    "no gate": ("layers.0.feed_forward", Plain, {"w1.weight": "mlp_in", "w2.weight": "mlp_out"}),
}


@pytest.mark.parametrize("library", LAYERS)
def test_shapes_tell_the_output_of_a_gated_layer(library: str) -> None:
    where, build, expected = LAYERS[library]
    for found in both_ways(within(where, build())):
        assert found == named(where, expected)


def test_biases_are_split_as_their_weights() -> None:
    model = within("blocks.0.mlp", SwiGLUFFN())
    for known in (model, None):
        partition = Partition().extended(dict(model.named_parameters()), known)
        biases = {block.name: (block.role, block.numel) for block in partition.blocks if block.role == "bias"}
        assert biases == {
            "blocks.0.mlp.w12.bias:mlp_gate": ("bias", HIDDEN),
            "blocks.0.mlp.w12.bias:mlp_in": ("bias", HIDDEN),
            "blocks.0.mlp.w3.bias": ("bias", WIDTH),
        }


@pytest.mark.parametrize("build", [SwiGLUFFN, Dinov2SwiGLUFFN], ids=["w12", "weights_in"])
def test_the_layer_is_linear_in_its_input_and_not_in_its_gate(build: Callable[[], nn.Module]) -> None:
    layer = build()
    parameters = dict(layer.named_parameters())
    partition = Partition().extended(parameters)
    held = dict(zip((block.name for block in partition.blocks), partition.held(parameters, {}), strict=True))
    x = torch.randn(3, WIDTH)

    def outputs(role: str, factor: float) -> Tensor:
        parts = [here[0].tensor for name, here in held.items() if name.endswith(f":{role}")]
        assert len(parts) == 2  # of the weight and of the bias
        before = [part.clone() for part in parts]
        for part in parts:
            part *= factor
        y: Tensor = layer(x)
        for part, old in zip(parts, before, strict=True):
            part.copy_(old)
        return y

    with torch.no_grad():
        for role in ("mlp_in", "mlp_gate"):
            first, second = (outputs(role, b) - outputs(role, a) for a, b in ((0, 1), (1, 2)))
            assert torch.allclose(first, second, rtol=1e-4, atol=1e-5) == (role == "mlp_in")


def test_checkpoints_are_split_without_a_model(tmp_path: Path) -> None:
    """The parts of a file's gate and input have the Gram matrices of these halves."""
    states = [{f"blocks.0.mlp.{n}": p.detach() for n, p in SwiGLUFFN().named_parameters()} for _ in range(3)]
    for step, state in enumerate(states):
        torch.save(state, tmp_path / f"step{step}.pt")
    trajectory = from_checkpoints(tmp_path)
    halves = {"mlp_gate": slice(HIDDEN), "mlp_in": slice(HIDDEN, None)}
    for role, half in halves.items():
        name = f"blocks.0.mlp.w12.weight:{role}"
        theta = torch.stack([state["blocks.0.mlp.w12.weight"][half].flatten() for state in states]).double()
        torch.testing.assert_close(torch.from_numpy(trajectory.gram(name)), theta @ theta.T)
        torch.testing.assert_close(trajectory.gram(f"role:{role}"), trajectory.gram(name))
    assert trajectory.settings["findings"] == []


def test_what_does_not_fit_is_not_split_but_said() -> None:
    """Without an output that goes with it, or with one of another size."""
    alone = {"blocks.0.mlp.w12.weight": torch.randn(2 * HIDDEN, WIDTH)}
    wider = {**alone, "blocks.0.mlp.w3.weight": torch.randn(WIDTH, HIDDEN + 1)}
    for parameters in (alone, wider):
        partition = Partition().extended(parameters)
        assert [block.name for block in partition.blocks] == list(parameters)
        assert partition.blocks[0].role == "linear"
        assert partition.undeclared == ("blocks.0.mlp.w12.weight",)


def test_a_gate_whose_side_is_not_known_is_said() -> None:
    """timm's SwiGLUPacked and GluMlp have the same names and shapes, and their gates on different sides."""
    parameters = {"blocks.0.mlp.fc1.weight": (2 * HIDDEN, WIDTH), "blocks.0.mlp.fc2.weight": (WIDTH, HIDDEN)}
    partition = Partition().extended({name: torch.randn(shape) for name, shape in parameters.items()})
    assert {block.name: block.role for block in partition.blocks} == {
        "blocks.0.mlp.fc1.weight": "linear",
        "blocks.0.mlp.fc2.weight": "mlp_out",
    }
    assert partition.undeclared == ("blocks.0.mlp.fc1.weight",)
    usual = {
        "blocks.0.mlp.fc1.weight": torch.randn(HIDDEN, WIDTH),
        "blocks.0.mlp.fc2.weight": torch.randn(WIDTH, HIDDEN),
    }
    assert Partition().extended(usual).undeclared == ()
    assert [block.role for block in Partition().extended(usual).blocks] == ["mlp_in", "mlp_out"]


def test_two_inputs_beside_c_proj_are_an_input_and_its_gate() -> None:
    """Qwen multiplies w1 with the activation of w2."""
    path = "transformer.h.0.mlp"
    shapes = {f"{path}.w1.weight": (HIDDEN, WIDTH), f"{path}.w2.weight": (HIDDEN, WIDTH)}
    output = {f"{path}.c_proj.weight": (WIDTH, HIDDEN)}
    qwen = {name: torch.randn(shape) for name, shape in {**shapes, **output}.items()}
    assert list(roles(qwen).values()) == ["mlp_in", "mlp_gate", "mlp_out"]
    alone = {name: torch.randn(shape) for name, shape in shapes.items()}
    assert list(roles(alone).values()) == ["mlp_in", "mlp_in"]
    plain = {f"{path}.w1.weight": torch.randn(HIDDEN, WIDTH), f"{path}.w2.weight": torch.randn(WIDTH, HIDDEN)}
    assert list(roles(plain).values()) == ["mlp_in", "mlp_out"]


def test_diffusers_feed_forward_is_told_by_shapes() -> None:
    """GEGLU has the gate in one tensor with the input, and looks fused; GELU has the input alone."""
    path = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net"
    for factor, role in ((2, "linear"), (1, "mlp_in")):
        parameters = {
            f"{path}.0.proj.weight": torch.randn(factor * HIDDEN, WIDTH),
            f"{path}.2.weight": torch.randn(WIDTH, HIDDEN),
        }
        partition = Partition().extended(parameters)
        assert [block.role for block in partition.blocks] == [role, "mlp_out"]
        assert partition.undeclared == ((f"{path}.0.proj.weight",) if factor == 2 else ())


def test_wrapped_layers_have_their_roles() -> None:
    """LoRA's base layers, and others of what lies between the names."""
    names = [f"layers.0.mlp.{name}.base_layer.weight" for name in ("w1", "w2", "w3")]
    shapes = {plain_path(names[0]): (HIDDEN, WIDTH), plain_path(names[1]): (HIDDEN, WIDTH)}
    shapes[plain_path(names[2])] = (WIDTH, HIDDEN)
    assert [role_of(name, 2, shapes=shapes) for name in names] == ["mlp_gate", "mlp_in", "mlp_out"]
    assert role_of("layers.0.mlp.w1.lora_A.default.weight", 2, shapes=shapes) == "lora_a"


# Graph and equivariant networks, and RWKV -------------------------------------------------------------------


def of_library(name: str, parameters: dict[str, tuple[int, ...]], **children: nn.Module) -> nn.Module:
    """A module of a class of this name."""
    library, _, kind = name.rpartition(".")
    module: Any = type(kind, (nn.Module,), {"__module__": library})()
    for parameter, shape in parameters.items():
        module.register_parameter(parameter, nn.Parameter(torch.randn(shape)))
    for child, its in children.items():
        module.add_module(child, its)
    return module  # type: ignore[no-any-return]


def pyg_linear(inputs: int, outputs: int) -> nn.Module:
    return of_library("torch_geometric.nn.dense.linear.Linear", {"weight": (outputs, inputs)})


PYG = "torch_geometric.nn.conv"
OTHERS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "GATConv": (
        lambda: of_library(
            f"{PYG}.gat_conv.GATConv",
            {"att_src": (1, 2, 4), "att_dst": (1, 2, 4), "att_edge": (1, 2, 4), "bias": (8,)},
            lin=pyg_linear(5, 8),
        ),
        {"att_src": "other", "att_dst": "other", "att_edge": "other", "lin.weight": "linear"},
    ),
    "GATv2Conv": (
        lambda: of_library(f"{PYG}.gatv2_conv.GATv2Conv", {"att": (1, 2, 4), "bias": (8,)}, lin_l=pyg_linear(5, 8)),
        {"att": "other", "lin_l.weight": "linear"},
    ),
    "RGCNConv": (
        lambda: of_library(f"{PYG}.rgcn_conv.RGCNConv", {"weight": (3, 5, 8), "root": (5, 8), "bias": (8,)}),
        {"weight": "linear", "root": "other"},
    ),
    "HeteroLinear": (
        lambda: of_library("torch_geometric.nn.dense.linear.HeteroLinear", {"weight": (3, 5, 8), "bias": (8,)}),
        {"weight": "linear"},
    ),
    "e3nn's Linear": (
        lambda: nn.ModuleDict(
            {
                "linear_1": of_library("e3nn.o3._linear.Linear", {"weight": (96,), "bias": (4,)}),
                "lin": of_library("e3nn.o3._linear.Linear", {"weight": (32,)}),
                "norm": of_library("e3nn.nn._batchnorm.BatchNorm", {"weight": (7,), "bias": (3,)}),
            }
        ),
        {"linear_1.weight": "linear", "lin.weight": "linear", "norm.weight": "norm", "norm.bias": "norm"},
    ),
    "a convolution in one dimension": (
        lambda: nn.ModuleDict({"layer": nn.Conv1d(5, 8, 3)}),
        {"layer.weight": "conv"},
    ),
    "a convolution of another library": (
        lambda: of_library("MinkowskiEngine.MinkowskiConvolution", {"kernel": (27, 5, 8)}),
        {"kernel": "conv"},
    ),
}


@pytest.mark.parametrize("layer", OTHERS)
def test_layers_of_graph_and_equivariant_networks(layer: str) -> None:
    build, expected = OTHERS[layer]
    model = within("convs.0", build())
    by_types, by_names = both_ways(model)
    assert by_types == named("convs.0", expected)
    if layer != "a convolution of another library":  # of which names say nothing
        assert by_names == named("convs.0", expected)


def test_a_stack_of_matrices_without_a_bias_cannot_be_told_from_a_convolution_by_its_name() -> None:
    weights = {"convs.0.weight": torch.randn(3, 5, 8)}
    assert roles(weights) == {"convs.0.weight": "conv"}
    assert roles({**weights, "convs.0.bias": torch.randn(3)}) == {"convs.0.weight": "conv"}


RWKV4 = {
    "att": ("time_mix_k", "time_mix_v", "time_mix_r", "time_decay", "time_first"),
    "ffn": ("time_mix_k", "time_mix_r"),
}
RWKV6 = {
    "att": ("time_maa_x", "time_maa_w", "time_maa_k", "time_maa_w1", "time_maa_w2", "time_decay_w1", "time_faaaa"),
    "ffn": ("time_maa_k", "time_maa_r"),
}
RWKV7 = {"att": ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g"), "ffn": ("x_k",)}
RWKV_HF = {
    "attention": ("time_mix_key", "time_mix_value", "time_mix_receptance", "time_decay", "time_first"),
    "feed_forward": ("time_mix_key", "time_mix_receptance"),
}
MATRICES = {"time_maa_w1": (8, 10), "time_maa_w2": (5, 2, 8), "time_decay_w1": (8, 4), "time_decay": (8,)}


@pytest.mark.parametrize("parts", [RWKV4, RWKV6, RWKV7, RWKV_HF], ids=["4", "6", "7", "transformers"])
def test_the_mixing_of_rwkv_has_one_role_everywhere(parts: dict[str, tuple[str, ...]]) -> None:
    blocks = {}
    for part, names in parts.items():
        matrices = {name: nn.Linear(8, 8, bias=False) for name in ("key", "value", "receptance")}
        blocks[part] = of_library("rwkv.RWKV", {name: MATRICES.get(name, (1, 1, 8)) for name in names}, **matrices)
    model = within("blocks.0", nn.ModuleDict(blocks))
    for found in both_ways(model):
        for part, names in parts.items():
            assert {found[f"blocks.0.{part}.{name}"] for name in names} == {"other"}
        attention, feed_forward = parts
        assert found[f"blocks.0.{attention}.key.weight"] == "k"
        assert found[f"blocks.0.{feed_forward}.key.weight"] == "mlp_in"
        assert found[f"blocks.0.{feed_forward}.value.weight"] == "mlp_out"
