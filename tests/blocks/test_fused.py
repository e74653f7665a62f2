"""Where q, k and v lie in fused tensors: in what the forward passes of real modules do with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.blip_2.modeling_blip_2 import Blip2Attention
from transformers.models.exaone4_5.modeling_exaone4_5 import Exaone4_5_VisionAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeAttention
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.granitemoeshared.modeling_granitemoeshared import GraniteMoeSharedMLP
from transformers.models.hiera.modeling_hiera import HieraMaskUnitAttention
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalAudioMLP
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention
from transformers.models.sam.modeling_sam import SamVisionAttention
from transformers.models.timesformer.modeling_timesformer import TimesformerSelfAttention

from lightning_traj.blocks.fused import FusedLayout
from lightning_traj.blocks.known_layouts import known_layout, looks_fused

pytestmark = pytest.mark.usefixtures("one_thread")

THIRDS = FusedLayout({"q": 1, "k": 1, "v": 1})
WIDTH, HEADS = 16, 4
SMALL = {"vocab_size": 32, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS}
NO_ROTATION = torch.ones(1, 4), torch.zeros(1, 4)
TOKEN = torch.tensor([[3]])  # one token, in position 0, where rotary embeddings leave q and k as they are


# Modules of libraries that are not installed: what their forward passes do with the fused tensor.


def with_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


class TimmAttention(nn.Module):
    """As in timm, DeiT, MAE, DINO and their copies."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


class HeadFirst(nn.Module):
    """MaxViT's attention in timm: a 1 × 1 convolution, head by head or not."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        self.num_heads, self.head_first = HEADS, head_first
        self.qkv = nn.Conv2d(WIDTH, 3 * WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.head_first:
            q, k, v = self.qkv(x).view(1, HEADS, 3 * WIDTH // HEADS, -1).chunk(3, dim=2)
        else:
            q, k, v = self.qkv(x).reshape(1, 3, HEADS, WIDTH // HEADS, -1).unbind(1)
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT)


class WideValues(nn.Module):
    """EfficientFormer and TinyViT in timm: values wider than keys."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim = HEADS, 4, 8
        self.qkv = nn.Linear(WIDTH, HEADS * 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = with_heads(self.qkv(x), HEADS).split([4, 4, 8], dim=-1)
        return F.scaled_dot_product_attention(q, k, v)


class GlobalQueries(nn.Module):
    """GCViT in timm: the query comes from elsewhere."""

    def __init__(self, use_global: bool) -> None:
        super().__init__()
        self.num_heads, self.use_global = HEADS, use_global
        self.qkv = nn.Linear(WIDTH, (2 if use_global else 3) * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (-1, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*(parts if len(parts) == 3 else (torch.ones_like(parts[0]), *parts)))


class ShiftedWindowAttention(nn.Module):
    """Swin in torchvision, which hands the weights themselves over."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(1, 1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        return torch.matmul(q * 0.5, k.mT).softmax(-1).matmul(v)


class NanoAttention(nn.Module):
    """CausalSelfAttention of nanoGPT and minGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_embd = HEADS, WIDTH
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (with_heads(part, HEADS) for part in self.c_attn(x).split(self.n_embd, dim=2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class CausalSelfAttention(nn.Module):
    """LitGPT's: 0.4.0 has ``attn``, a query group after another; 0.5.13 has ``qkv``, in one piece each."""

    def __init__(self, child: str, query_groups: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(n_head=HEADS, n_query_groups=query_groups, head_size=4, n_embd=WIDTH)
        self.add_module(child, nn.Linear(WIDTH, (HEADS + 2 * query_groups) * 4))
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.is_old, self.query_groups = child == "attn", query_groups

    def forward(self, x: Tensor) -> Tensor:
        (b, t, _), groups = x.shape, self.query_groups
        if self.is_old:
            qkv = self.attn(x).view(b, t, groups, HEADS // groups + 2, 4).permute(0, 2, 3, 1, 4)
            q, k, v = (part.reshape(b, -1, t, 4) for part in qkv.split((HEADS // groups, 1, 1), dim=2))
        else:
            sizes = HEADS * 4, groups * 4, groups * 4
            q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.qkv(x).split(sizes, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class GluMlp(nn.Module):
    """timm's GluMlp (gate last) and SwiGLUPacked (gate first)."""

    def __init__(self, gate_last: bool) -> None:
        super().__init__()
        self.gate_last = gate_last
        self.fc1 = nn.Linear(WIDTH, 24)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fc1(x).chunk(2, dim=-1)
        return first * self.act(second) if self.gate_last else self.act(first) * second


class QKVOnly(nn.Module):
    """A home-made one: nothing tells how it is split."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)


def of_library(library: str, module: nn.Module) -> nn.Module:
    """The module as if its class came from this library."""
    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), {"__module__": f"{library}.models"})
    return module


@dataclass
class Case:
    """A module with a fused layer, and how to run it."""

    build: Callable[[], nn.Module]
    layout: FusedLayout
    inputs: Callable[[], dict[str, Any]] = lambda: {"input_ids": TOKEN}
    n: int = 2  # fused tensors, weights and biases, with this layout


def model(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = getattr(transformers, f"{name}Config")(**SMALL | {"attn_implementation": "eager"} | settings)
        return getattr(transformers, f"{name}Model")(config)

    return build


def decision_transformer() -> nn.Module:
    return transformers.DecisionTransformerGPT2Model(transformers.DecisionTransformerConfig(**SMALL))


def of_x(*shape: int, name: str = "x", **others: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {name: torch.randn(*(shape or (1, 1, WIDTH))), **others}


def config(**settings: Any) -> Any:
    """A configuration for a module alone."""
    return transformers.PreTrainedConfig(**SMALL | {"attn_implementation": "eager"} | settings)


CASES = {
    "gpt_neox": Case(model("GPTNeoX", intermediate_size=32), FusedLayout(THIRDS.parts, HEADS)),
    "gpt_neox_japanese": Case(model("GPTNeoXJapanese"), FusedLayout(THIRDS.parts, HEADS), n=1),
    "bloom": Case(model("Bloom", n_head=HEADS), FusedLayout(THIRDS.parts, HEADS)),
    "falcon_old": Case(model("Falcon", multi_query=False, bias=True), FusedLayout(THIRDS.parts, HEADS)),
    "falcon_multi_query": Case(model("Falcon", multi_query=True), FusedLayout({"q": HEADS, "k": 1, "v": 1}), n=1),
    "falcon_grouped": Case(
        model("Falcon", new_decoder_architecture=True, num_kv_heads=2), FusedLayout({"q": 2, "k": 1, "v": 1}, 2), n=1
    ),
    "mpt": Case(model("Mpt", d_model=WIDTH, n_heads=HEADS, n_layers=1, max_seq_len=8), THIRDS, n=1),
    "persimmon": Case(model("Persimmon", intermediate_size=32, qk_layernorm=False), FusedLayout(THIRDS.parts, HEADS)),
    "codegen": Case(
        model("CodeGen", n_embd=32, n_head=8, n_layer=1, rotary_dim=2), FusedLayout({"q": 1, "v": 1, "k": 1}, 4), n=1
    ),
    "gpt2": Case(model("GPT2"), FusedLayout(THIRDS.parts, axis=-1)),
    "gpt2_cross": Case(
        lambda: GPT2Attention(transformers.GPT2Config(**SMALL, attn_implementation="eager"), is_cross_attention=True),
        FusedLayout({"k": 1, "v": 1}, axis=-1),
        lambda: {"hidden_states": torch.randn(1, 1, WIDTH), "encoder_hidden_states": torch.randn(1, 1, WIDTH)},
    ),
    "imagegpt": Case(model("ImageGPT"), FusedLayout(THIRDS.parts, axis=-1)),
    "openai_gpt": Case(model("OpenAIGPT"), FusedLayout(THIRDS.parts, axis=-1)),
    "decision_transformer": Case(
        decision_transformer,
        FusedLayout(THIRDS.parts, axis=-1),
        of_x(name="inputs_embeds"),
    ),
    "bigcode_multi_query": Case(model("GPTBigCode"), FusedLayout({"q": HEADS, "k": 1, "v": 1})),
    "bigcode": Case(model("GPTBigCode", multi_query=False), FusedLayout(THIRDS.parts, HEADS)),
    "phi3": Case(
        model("Phi3", num_key_value_heads=2, intermediate_size=32, pad_token_id=0),
        FusedLayout({"q": 2, "k": 1, "v": 1}),
        n=1,
    ),
    "dbrx": Case(
        model(
            "Dbrx",
            d_model=WIDTH,
            n_heads=HEADS,
            n_layers=1,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ),
        FusedLayout({"q": 2, "k": 1, "v": 1}),
        n=1,
    ),
    "modernbert": Case(model("ModernBert", intermediate_size=32, pad_token_id=0), THIRDS, n=1),
    "deberta": Case(
        model("Deberta", intermediate_size=32, relative_attention=False), FusedLayout(THIRDS.parts, HEADS), n=1
    ),
    "minimax": Case(
        lambda: MiniMaxLightningAttention(
            transformers.MiniMaxConfig(**SMALL, num_key_value_heads=HEADS, head_dim=4, hidden_act="linear"), 0
        ),
        FusedLayout(THIRDS.parts, HEADS),
        of_x(name="hidden_states", position_embeddings=None, attention_mask=None),
        n=1,
    ),
    "sam": Case(
        lambda: SamVisionAttention(transformers.SamVisionConfig(**SMALL, use_rel_pos=False), 0),
        THIRDS,
        of_x(1, 1, 1, WIDTH, name="hidden_states"),
    ),
    "blip2": Case(
        lambda: Blip2Attention(config(attention_dropout=0.0, qkv_bias=True)), THIRDS, of_x(name="hidden_states")
    ),
    "qwen2_vl": Case(
        lambda: VisionAttention(
            transformers.Qwen2VLConfig(
                vision_config={"embed_dim": WIDTH, "num_heads": HEADS}, attn_implementation="eager"
            ).vision_config
        ),
        THIRDS,
        of_x(
            1,
            WIDTH,
            name="hidden_states",
            cu_seqlens=torch.tensor([0, 1]),
            position_embeddings=NO_ROTATION,
        ),
    ),
    "exaone_vision": Case(
        lambda: Exaone4_5_VisionAttention(config(num_heads=HEADS, num_key_value_heads=2)),
        FusedLayout({"q": 2, "k": 1, "v": 1}),
        of_x(
            1,
            WIDTH,
            name="hidden_states",
            cu_seqlens=torch.tensor([0, 1]),
            position_embeddings=NO_ROTATION,
        ),
    ),
    "hiera": Case(lambda: HieraMaskUnitAttention(WIDTH, 2 * WIDTH, HEADS), THIRDS, of_x(name="hidden_states")),
    "timesformer": Case(
        lambda: TimesformerSelfAttention(transformers.TimesformerConfig(**SMALL)), THIRDS, of_x(name="hidden_states")
    ),
    "timm": Case(lambda: of_library("timm", TimmAttention()), THIRDS, of_x()),
    "copy_of_timm": Case(lambda: TimmAttention(bias=False), THIRDS, of_x(), n=1),
    "timm_head_first": Case(
        lambda: of_library("timm", HeadFirst(True)), FusedLayout(THIRDS.parts, HEADS), of_x(1, WIDTH, 1, 1)
    ),
    "timm_conv": Case(lambda: of_library("timm", HeadFirst(False)), THIRDS, of_x(1, WIDTH, 1, 1)),
    "timm_wide_values": Case(
        lambda: of_library("timm", WideValues()), FusedLayout({"q": 1, "k": 1, "v": 2}, HEADS), of_x()
    ),
    "timm_global_queries": Case(lambda: of_library("timm", GlobalQueries(True)), FusedLayout({"k": 1, "v": 1}), of_x()),
    "timm_local_queries": Case(lambda: of_library("timm", GlobalQueries(False)), THIRDS, of_x()),
    "torchvision_swin": Case(lambda: of_library("torchvision", ShiftedWindowAttention()), THIRDS, of_x()),
    "nanogpt": Case(NanoAttention, THIRDS, of_x()),
    "litgpt_old": Case(lambda: CausalSelfAttention("attn", 2), FusedLayout({"q": 2, "k": 1, "v": 1}, 2), of_x()),
    "litgpt_old_full": Case(lambda: CausalSelfAttention("attn", HEADS), FusedLayout(THIRDS.parts, HEADS), of_x()),
    "litgpt_new": Case(lambda: CausalSelfAttention("qkv", 2), FusedLayout({"q": 2, "k": 1, "v": 1}), of_x()),
}


class Operands(TorchFunctionMode):
    """What attention multiplies, once ``is_on``: q with k, and then the weights with v."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.is_on = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.is_on and name == "scaled_dot_product_attention":
            self.seen += args[:3]
        elif self.is_on and name in ("matmul", "__matmul__", "bmm", "baddbmm"):
            factors = [*args, *(kwargs[key] for key in ("batch1", "batch2") if key in kwargs)][-2:]
            self.seen += factors[1:] if self.seen else factors
        return func(*args, **kwargs)


Found = tuple[nn.Module, str, FusedLayout]


def fused_tensors(root: nn.Module) -> Iterator[Found]:
    """The owner, the name there and the layout of each fused tensor of a model."""
    modules = dict(root.named_modules())
    for path, module in modules.items():
        for name, _ in module.named_parameters(recurse=False):
            parent = modules[path.rpartition(".")[0]] if path else None
            if (layout := known_layout(module, parent, name)) is not None:
                yield module, name, layout


def randomise(root: nn.Module) -> nn.Module:
    """Draw all parameters: biases start as zeros, which tell nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in root.named_parameters():
            # DeBERTa adds these two after the split
            parameter.zero_() if name.endswith(("q_bias", "v_bias")) else parameter.normal_(std=0.3)
    return root.eval()


def activations(layer: nn.Module, layout: FusedLayout, role: str, x: Tensor) -> Tensor:
    """What a part of a fused layer makes of one vector."""
    weight = layout.part(layer.weight, role)
    matrix = weight.reshape(-1, x.numel()) if layout.axis == 0 else weight.reshape(x.numel(), -1).T
    y = matrix @ x.flatten()
    return y if layer.bias is None else y + layout.part(layer.bias, role).flatten()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_parts_are_what_attention_multiplies(name: str) -> None:
    case = CASES[name]
    root = randomise(case.build())
    found = [(layer, layout) for layer, _, layout in fused_tensors(root) if "v" in layout.parts]
    assert [layout for _, layout in found] == case.n * [case.layout]
    layer, layout = found[0]
    operands, inputs = Operands(), []

    def start(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0])
        operands.is_on = True

    layer.register_forward_hook(start)
    with torch.no_grad(), operands:
        root(**case.inputs())
    for role, seen in zip("qkv", operands.seen[:3], strict=True):
        if role in layout.parts:
            expected = activations(layer, layout, role, inputs[0])
            if seen.numel() > expected.numel():  # keys and values that several queries share were repeated
                seen = torch.unique_consecutive(seen.reshape(HEADS, -1), dim=0)
            seen = seen.flatten()
            if role == "q":  # some scale it first
                seen, expected = F.normalize(seen, dim=0), F.normalize(expected, dim=0)
            assert_same(seen, expected)


@pytest.mark.parametrize("name", CASES)
def test_parts_add_up_to_the_tensor(name: str) -> None:
    for layer, parameter, layout in fused_tensors(randomise(CASES[name].build())):
        tensor = getattr(layer, parameter).detach().double()
        parts = [layout.part(tensor, role) for role in layout.parts]
        assert all(part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for part in parts)
        assert sum(part.numel() for part in parts) == tensor.numel()
        assert float(sum((part * part).sum() for part in parts)) == pytest.approx(float((tensor**2).sum()), rel=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_torch_attention(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 32, 0.0, batch_first=True, bias=bias), 2, None, False
    )
    randomise(encoder)
    found = list(fused_tensors(encoder))
    names = ["in_proj_weight", "in_proj_bias"] if bias else ["in_proj_weight"]
    assert [(name, layout) for _, name, layout in found] == [(name, THIRDS) for name in names] * 2
    attention, seen = found[0][0], []
    assert isinstance(attention, nn.MultiheadAttention)
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv, **_: seen.extend(qkv[:3]) or original(*qkv))
    x = torch.randn(1, 1, WIDTH)
    attention.train()(x, x, x, need_weights=False)
    fused = SimpleNamespace(weight=attention.in_proj_weight, bias=attention.in_proj_bias)
    for role, actual in zip("qkv", seen[:3], strict=True):
        assert_same(actual.flatten(), activations(fused, THIRDS, role, x))


def test_torch_attention_with_separate_weights_has_a_fused_bias() -> None:
    attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=8)
    assert [(name, layout) for _, name, layout in fused_tensors(attention)] == [("in_proj_bias", THIRDS)]


GATES: dict[str, Callable[[], nn.Module]] = {
    "phi3": model("Phi3", num_key_value_heads=2, intermediate_size=32, pad_token_id=0),
    "glm": model("Glm", num_key_value_heads=2, intermediate_size=32, head_dim=4, pad_token_id=0),
    "phi4_audio": lambda: Phi4MultimodalAudioMLP(transformers.Phi4MultimodalAudioConfig(hidden_size=WIDTH)),
    "granite": lambda: GraniteMoeSharedMLP(
        transformers.GraniteMoeSharedConfig(hidden_size=WIDTH, shared_intermediate_size=24)
    ),
    "modernbert": lambda: ModernBertMLP(transformers.ModernBertConfig(hidden_size=WIDTH, intermediate_size=24)),
    "timm_glu": lambda: of_library("timm", GluMlp(True)),
    "timm_packed": lambda: of_library("timm", GluMlp(False)),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_are_what_the_activation_is_given(name: str) -> None:
    root = randomise(GATES[name]())
    layer, _, layout = next(found for found in fused_tensors(root) if "mlp_gate" in found[2].parts)
    parent = next(module for module in root.modules() if layer in module.children())
    names = ("act", "act_fn", "activation", "activation_fn")
    activation = next(child for child_name, child in parent.named_children() if child_name in names)
    given: list[Tensor] = []
    layer.register_forward_hook(lambda _, args, output: given.append(args[0]))
    activation.register_forward_hook(lambda _, args, output: given.append(args[0]))
    with torch.no_grad():
        root(TOKEN) if hasattr(root, "embed_tokens") else root(torch.randn(1, 1, WIDTH))
    assert_same(given[1].flatten(), activations(layer, layout, "mlp_gate", given[0]))


def experts(cls: Callable[[Any], nn.Module], **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        plain = config(intermediate_size=24, hidden_act="silu", **settings)
        plain._experts_implementation = "eager"
        return cls(plain)

    return build


EXPERTS = {
    "mixtral": experts(MixtralExperts, num_local_experts=2),
    "aria": experts(AriaExperts, moe_num_experts=2),
    "llama4": experts(Llama4TextExperts, num_local_experts=2),
    "gpt_oss": experts(GptOssExperts, num_local_experts=2, swiglu_alpha=1.7, swiglu_limit=1e3),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_linear_in_mlp_in_and_not_in_their_gate(name: str) -> None:
    module = randomise(EXPERTS[name]())
    found = list(fused_tensors(module))
    assert [parameter for _, parameter, _ in found] == ["gate_up_proj", "gate_up_proj_bias"][: 1 + (name == "gpt_oss")]
    inputs = (torch.randn(2, WIDTH), torch.tensor([[0], [1]]), torch.ones(2, 1))[: 1 if name == "llama4" else 3]

    def outputs(role: str, factor: float) -> Tensor:
        parts = [layout.part(getattr(module, parameter), role) for _, parameter, layout in found]
        before = [part.clone() for part in parts]
        for part in parts:
            part *= factor
        y = module(*inputs)
        for part, old in zip(parts, before, strict=True):
            part.copy_(old)
        return y

    with torch.no_grad():
        for role in ("mlp_in", "mlp_gate"):
            first, second = (outputs(role, b) - outputs(role, a) for a, b in ((0, 1), (1, 2)))
            assert torch.allclose(first, second, rtol=1e-3, atol=1e-4) == (role == "mlp_in")


def layout_of(root: nn.Module, child: str) -> FusedLayout | None:
    return known_layout(root.get_submodule(child), root, "weight")


def test_subclasses_are_known_by_the_classes_they_come_from() -> None:
    neox = transformers.GPTNeoXConfig(**SMALL)
    renamed = type("GPTNeoXSdpaAttention", (GPTNeoXAttention,), {})(neox, 0)
    assert layout_of(renamed, "query_key_value") == FusedLayout(THIRDS.parts, HEADS)


def test_layer_in_a_lora_wrapper_is_known_by_the_owner_of_the_wrapper() -> None:
    attention = TimmAttention()
    wrapper = nn.Module()
    wrapper.base_layer = attention.qkv
    attention.qkv = wrapper
    assert known_layout(wrapper.base_layer, attention, "weight") == THIRDS
    assert known_layout(wrapper.base_layer, wrapper, "weight") is None


def namesake() -> nn.Module:
    """A class called as one of transformers' is, with another layout."""
    module = type("GPTNeoXAttention", (nn.Module,), {"__module__": "home"})()
    module.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
    module.num_heads = HEADS
    return module


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "only called qkv": (QKVOnly, "qkv"),
    "another library's": (namesake, "query_key_value"),
    "without its attributes": (lambda: of_library("transformers", strip(namesake(), "num_heads")), "query_key_value"),
    "wider than thirds": (lambda: replace(TimmAttention(), "qkv", nn.Linear(WIDTH, 4 * WIDTH)), "qkv"),
    "no linear layer": (lambda: replace(TimmAttention(), "qkv", nn.LayerNorm(3 * WIDTH)), "qkv"),
    "grouped convolution": (
        lambda: replace(of_library("timm", HeadFirst(False)), "qkv", nn.Conv2d(WIDTH, 48, 1, groups=2)),
        "qkv",
    ),
    "LambdaNet": (lambda: replace(of_library("timm", TimmAttention()), "dim_qk", 4), "qkv"),
    "c_attn of no GPT": (lambda: strip(NanoAttention(), "n_embd"), "c_attn"),
    "c_attn of another width": (lambda: replace(NanoAttention(), "n_embd", 8), "c_attn"),
    "other heads than LitGPT's": (
        lambda: replace(CausalSelfAttention("qkv", 2), "qkv", nn.Linear(WIDTH, 3 * WIDTH)),
        "qkv",
    ),
    "CausalSelfAttention without a config": (lambda: strip(CausalSelfAttention("qkv", 2), "config"), "qkv"),
    "cross-attention of GPTBigCode": (
        lambda: GPTBigCodeAttention(transformers.GPTBigCodeConfig(**SMALL, multi_query=False), True),
        "c_attn",
    ),
    "not fused": (TimmAttention, "proj"),
}


def strip(module: nn.Module, name: str) -> nn.Module:
    delattr(module, name)
    return module


def replace(module: nn.Module, name: str, value: Any) -> nn.Module:
    setattr(module, name, value)
    return module


@pytest.mark.parametrize("name", UNKNOWN)
def test_in_doubt_nothing_is_known(name: str) -> None:
    build, child = UNKNOWN[name]
    assert layout_of(build(), child) is None


def test_shapes_that_a_layer_does_not_have_are_not_known() -> None:
    attention = TimmAttention()
    attention.qkv.weight = nn.Parameter(torch.randn(3 * WIDTH * WIDTH))  # FSDP: flattened
    attention.qkv.bias = nn.Parameter(torch.randn(WIDTH - 1))  # and cut
    assert known_layout(attention.qkv, attention, "weight") is None
    assert known_layout(attention.qkv, attention, "bias") is None
    packed = nn.MultiheadAttention(WIDTH, HEADS)
    packed.in_proj_weight = nn.Parameter(torch.randn(3))
    assert known_layout(packed, None, "in_proj_weight") is None


def test_other_parameters_are_not_known() -> None:
    attention = TimmAttention(bias=False)
    assert known_layout(attention.qkv, attention, "bias") is None
    assert known_layout(attention.qkv, None, "weight") is None
    attention.qkv.scale = nn.Parameter(torch.ones(3))
    assert known_layout(attention.qkv, attention, "scale") is None
    assert known_layout(nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True), None, "bias_k") is None
    home_made = nn.Module()
    home_made.gate_up_proj = nn.Parameter(torch.randn(2, 8, 4))
    assert known_layout(home_made, None, "gate_up_proj") is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.attn.qkv.weight", (48, 16)),
        ("blocks.0.attn.qkv.bias", (48,)),
        ("qkv.base_layer.weight", (48, 16)),
        ("h.0.attn.c_attn.weight", (16, 48)),
        ("layer.query_key_value.weight", (20, 16)),
        ("transformer.Wqkv.weight", (48, 16)),
        ("layers.0.W_pack.weight", (48, 16)),
        ("attn.to_qkv.weight", (48, 16)),
        ("attn.to_kv.weight", (32, 16)),
        ("attn.kv.weight", (32, 16)),
        ("attn.in_proj_weight", (48, 16)),
        ("mlp.gate_up_proj.weight", (32, 16)),
        ("qkv", (48, 16)),
    ],
)
def test_fused_tensors_look_so(name: str, shape: tuple[int, ...]) -> None:
    assert looks_fused(name, shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attn.q_proj.weight", (16, 16)),
        ("attn.qkv.proj.weight", (16, 16)),
        ("attn.qkv_norm.weight", (48,)),
        ("mamba.in_proj.weight", (64, 16)),
        ("qkv.scale", ()),
        ("lstm.weight_ih_l0", (64, 16)),
        ("mlp.fc.weight", (48, 16)),
    ],
)
def test_other_tensors_do_not_look_fused(name: str, shape: tuple[int, ...]) -> None:
    assert not looks_fused(name, shape)


def test_layout_is_a_value() -> None:
    parts = {"q": 1, "k": 1}
    layout = FusedLayout(parts)
    parts["v"] = 1
    assert layout == FusedLayout({"q": 1, "k": 1})
    assert hash(layout) == hash(FusedLayout({"q": 1, "k": 1}))
    assert layout != FusedLayout({"k": 1, "q": 1})  # another order
    assert layout not in (FusedLayout({"q": 1, "k": 1}, 2), FusedLayout({"q": 1, "k": 1}, axis=-1), "q, k")
    with pytest.raises(FrozenInstanceError):
        layout.groups = 2


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"parts": {}}, ValueError, "parts={}: name at least one part"),
        ({"parts": "qkv"}, ValueError, "parts='qkv': name at least one part"),
        ({"parts": {"query": 1}}, ValueError, "'query' is not a role; choose from q, k, v"),
        ({"parts": {"q": 0}}, ValueError, r"parts\['q'\]=0: pass a positive int"),
        ({"parts": {"q": 0.5}}, TypeError, r"parts\['q'\]=0.5: pass a positive int"),
        ({"parts": {"q": 1}, "groups": 0}, ValueError, "groups=0: pass a positive int"),
        ({"parts": {"q": 1}, "groups": True}, TypeError, "groups=True: pass a positive int"),
        ({"parts": {"q": 1}, "axis": "out"}, TypeError, "axis='out': pass an int"),
    ],
)
def test_wrong_layouts_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FusedLayout(**settings)


def test_part_has_to_be_one_of_the_parts() -> None:
    with pytest.raises(ValueError, match="role='mlp_in': the parts are q, k, v"):
        THIRDS.part(torch.ones(6), "mlp_in")


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        (THIRDS, (16, 4), r"fused: qkv.weight has shape \(16, 4\).*axis 0 into 3 equal pieces.*16 entries cannot"),
        (FusedLayout(THIRDS.parts, 4), (18,), "12 equal pieces"),
        (FusedLayout(THIRDS.parts, axis=1), (48,), "axis 1, which it does not have"),
        (FusedLayout(THIRDS.parts, axis=-2), (48,), "axis -2, which it does not have"),
        (THIRDS, (0, 4), "0 entries cannot"),
        (THIRDS, (), "axis 0, which it does not have"),
    ],
)
def test_layout_that_does_not_divide_the_tensor(layout: FusedLayout, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout.check("qkv.weight", shape)


@given(
    shares=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    groups=st.integers(1, 4),
    unit=st.integers(1, 3),
    others=st.lists(st.integers(1, 3), max_size=2),
    data=st.data(),
)
def test_parts_are_a_permutation_of_the_tensor(
    shares: list[int], groups: int, unit: int, others: list[int], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-len(others) - 1, len(others)))
    shape = list(others)
    shape.insert(axis % (len(others) + 1), groups * sum(shares) * unit)
    layout = FusedLayout(dict(zip(("q", "k", "v", "mlp_in"), shares, strict=False)), groups, axis)
    layout.check("tensor", shape)
    tensor = torch.arange(prod(shape)).reshape(shape)
    parts = {role: layout.part(tensor, role) for role in layout.parts}
    assert sorted(int(i) for part in parts.values() for i in part.flatten()) == list(range(tensor.numel()))
    assert all(part.numel() * sum(shares) == tensor.numel() * layout.parts[role] for role, part in parts.items())
    transposed = layout.part(tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor, "q")
    assert torch.equal(transposed, parts["q"])  # whatever the strides are


def test_nothing_is_imported_for_it() -> None:
    script = (
        "import sys, torch\n"
        "from lightning_traj.blocks.known_layouts import known_layout\n"
        "known_layout(torch.nn.Linear(3, 9), torch.nn.Module(), 'weight')\n"
        "assert not {'transformers', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
