"""Parameters -> roles: of real networks, from types and names, and from names alone."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from lightning_traj.blocks.roles import ROLES, role_of
from recipes.resnet.model import ImageClassifier

SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GROUPED = SIZES | {"num_key_value_heads": 1}
GPT2_SIZES = {"vocab_size": 11, "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 8}
T5_SIZES = {"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
UNTIED = {"tie_word_embeddings": False}

LLAMA_ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "attn_out"}
OUT_ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "attn_out"}
NEOX_ATTENTION = {"query_key_value": "linear", "dense": "attn_out"}
NEOX_MLP = {"dense_h_to_4h": "mlp_in", "dense_4h_to_h": "mlp_out"}
GATED_MLP = {"gate_proj": "mlp_gate", "up_proj": "mlp_in", "down_proj": "mlp_out"}
TORCH_ATTENTION = {"in_proj_weight": "linear", "out_proj": "attn_out"}
BERT_EMBEDDINGS = {"word_embeddings": "embedding", "position_embeddings": "position", "LayerNorm": "norm"}
T5_ATTENTION = {"q": "q", "k": "k", "v": "v", "o": "attn_out"}


def llama(attention, mlp):
    norms = {"input_layernorm": "norm", "post_attention_layernorm": "norm"}
    layer = {"self_attn": attention, "mlp": mlp} | norms
    return {"model": {"embed_tokens": "embedding", "layers.0": layer, "norm": "norm"}, "lm_head": "head"}


def gated_t5():
    first = T5_ATTENTION | {"relative_attention_bias": "position"}
    mlp = {"DenseReluDense": {"wi_0": "mlp_gate", "wi_1": "mlp_in", "wo": "mlp_out"}, "layer_norm": "norm"}
    own = {"SelfAttention": first, "layer_norm": "norm"}
    cross = {"EncDecAttention": T5_ATTENTION, "layer_norm": "norm"}
    stacks = {"encoder": {"0": own, "1": mlp}, "decoder": {"0": own, "1": cross, "2": mlp}}
    named = {stack: {"block.0.layer": layers, "final_layer_norm": "norm"} for stack, layers in stacks.items()}
    return {"shared": "embedding"} | named  # the head is tied to it


# Network, and the roles of all its weights: module (or a parameter with a name of its own) -> role, nested by module.
NETWORKS = {
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False),
        {
            "layers.0": {
                "self_attn": TORCH_ATTENTION,
                "linear1": "mlp_in",
                "linear2": "mlp_out",
                "norm1": "norm",
                "norm2": "norm",
            }
        },
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 1),
        {
            "layers.0": {
                "self_attn": TORCH_ATTENTION,
                "multihead_attn": TORCH_ATTENTION,
                "linear1": "mlp_in",
                "linear2": "mlp_out",
                "norm1": "norm",
                "norm2": "norm",
                "norm3": "norm",
            }
        },
    ),
    "GPT-2": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SIZES, **UNTIED)),
        {
            "transformer": {
                "wte": "embedding",
                "wpe": "position",
                "h.0": {
                    "ln_1": "norm",
                    "attn": {"c_attn": "linear", "c_proj": "attn_out"},
                    "ln_2": "norm",
                    "mlp": {"c_fc": "mlp_in", "c_proj": "mlp_out"},
                },
                "ln_f": "norm",
            },
            "lm_head": "head",
        },
    ),
    "GPT-NeoX": (
        lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)),
        {
            "gpt_neox": {
                "embed_in": "embedding",
                "layers.0": {
                    "input_layernorm": "norm",
                    "post_attention_layernorm": "norm",
                    "attention": NEOX_ATTENTION,
                    "mlp": NEOX_MLP,
                },
                "final_layer_norm": "norm",
            },
            "lm_head": "head",
        },
    ),
    "Llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
        llama(LLAMA_ATTENTION, GATED_MLP),
    ),
    "Mistral": (
        lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED)),
        llama(LLAMA_ATTENTION, GATED_MLP),
    ),
    "Mixtral": (
        lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**GROUPED, num_local_experts=2)),
        llama(LLAMA_ATTENTION, {"gate": "linear", "experts": {"gate_up_proj": "linear", "down_proj": "mlp_out"}}),
    ),
    "Qwen2": (
        lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED)),
        llama(LLAMA_ATTENTION, GATED_MLP),
    ),
    "Qwen3": (
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, head_dim=4)),
        llama(LLAMA_ATTENTION | {"q_norm": "norm", "k_norm": "norm"}, GATED_MLP),
    ),
    "Falcon": (
        lambda: transformers.FalconForCausalLM(transformers.FalconConfig(**SIZES, bias=True, **UNTIED)),
        {
            "transformer": {
                "word_embeddings": "embedding",
                "h.0": {"self_attention": NEOX_ATTENTION, "mlp": NEOX_MLP, "input_layernorm": "norm"},
                "ln_f": "norm",
            },
            "lm_head": "head",
        },
    ),
    "OPT": (
        lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(
                vocab_size=11, hidden_size=8, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2, **UNTIED
            )
        ),
        {
            "model.decoder": {
                "embed_tokens": "embedding",
                "embed_positions": "position",
                "final_layer_norm": "norm",
                "layers.0": {
                    "self_attn": OUT_ATTENTION,
                    "self_attn_layer_norm": "norm",
                    "fc1": "mlp_in",
                    "fc2": "mlp_out",
                    "final_layer_norm": "norm",
                },
            },
            "lm_head": "head",
        },
    ),
    "BERT": (
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)),
        {
            "bert": {
                "embeddings": BERT_EMBEDDINGS | {"token_type_embeddings": "embedding"},
                "encoder.layer.0": {
                    "attention": {
                        "self": {"query": "q", "key": "k", "value": "v"},
                        "output": {"dense": "attn_out", "LayerNorm": "norm"},
                    },
                    "intermediate.dense": "mlp_in",
                    "output": {"dense": "mlp_out", "LayerNorm": "norm"},
                },
                "pooler.dense": "linear",
            },
            "classifier": "head",
        },
    ),
    "DistilBERT": (
        lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(vocab_size=11, dim=8, n_layers=1, n_heads=2, hidden_dim=16)
        ),
        {
            "distilbert": {
                "embeddings": BERT_EMBEDDINGS,
                "transformer.layer.0": {
                    "attention": {"q_lin": "q", "k_lin": "k", "v_lin": "v", "out_lin": "attn_out"},
                    "sa_layer_norm": "norm",
                    "ffn": {"lin1": "mlp_in", "lin2": "mlp_out"},
                    "output_layer_norm": "norm",
                },
            },
            "pre_classifier": "head",
            "classifier": "head",
        },
    ),
    "ViT": (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=8,
                patch_size=4,
            )
        ),
        {
            "vit": {
                "embeddings": {
                    "cls_token": "embedding",
                    "position_embeddings": "position",
                    "patch_embeddings.projection": "conv",
                },
                "layers.0": {
                    "attention": LLAMA_ATTENTION,
                    "layernorm_before": "norm",
                    "layernorm_after": "norm",
                    "mlp": {"fc1": "mlp_in", "fc2": "mlp_out"},
                },
                "layernorm": "norm",
            },
            "classifier": "head",
        },
    ),
    "T5": (
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(**T5_SIZES, feed_forward_proj="gated-gelu")
        ),
        gated_t5(),
    ),
    "T5 encoder, not gated": (
        lambda: transformers.T5EncoderModel(transformers.T5Config(**T5_SIZES)),
        {
            "shared": "embedding",
            "encoder": {
                "block.0.layer": {
                    "0": {
                        "SelfAttention": T5_ATTENTION | {"relative_attention_bias": "position"},
                        "layer_norm": "norm",
                    },
                    "1": {"DenseReluDense": {"wi": "mlp_in", "wo": "mlp_out"}, "layer_norm": "norm"},
                },
                "final_layer_norm": "norm",
            },
        },
    ),
}


@pytest.fixture(scope="module")
def networks():
    return {name: build() for name, (build, _) in NETWORKS.items()}


def flat(roles, prefix=""):
    items = ((f"{prefix}{name}", role) for name, role in roles.items())
    return {
        path: role
        for name, value in items
        for path, role in (flat(value, f"{name}.").items() if isinstance(value, dict) else [(name, value)])
    }


def owner(network, name):
    return network.get_submodule(name.rpartition(".")[0])


def roles(network, with_types=True, prefix=""):
    return {
        f"{prefix}{name}": role_of(f"{prefix}{name}", p.ndim, owner(network, name) if with_types else None)
        for name, p in network.named_parameters()
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("with_types", [True, False], ids=["types and names", "names alone"])
@pytest.mark.parametrize("prefix", ["", "model.", "net.0."])
def test_every_parameter_of_known_networks_has_the_role_that_is_expected(networks, name, with_types, prefix):
    expected = flat(NETWORKS[name][1])
    found = {name.removeprefix(prefix): role for name, role in roles(networks[name], with_types, prefix=prefix).items()}
    weights = {name.removesuffix(".weight"): role for name, role in found.items() if not name.endswith("bias")}
    assert weights == expected
    for bias in found.keys() - {f"{module}.weight" for module in weights} - weights.keys():
        is_of_norm = expected.get(bias.removesuffix(".bias")) == "norm"
        assert found[bias] == ("norm" if is_of_norm else "bias"), bias


@pytest.mark.parametrize("with_types", [True, False], ids=["types and names", "names alone"])
def test_every_parameter_of_the_resnet(with_types):
    network = ImageClassifier(depth=8, width=4)
    for name, role in roles(network, with_types).items():
        module = owner(network, name)
        expected = "conv" if isinstance(module, nn.Conv2d) else "norm" if isinstance(module, nn.BatchNorm2d) else "head"
        assert role == ("bias" if name == "network.head.bias" else expected), name


def test_parts_of_multihead_attention():
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True)
    expected = {
        "q_proj_weight": "q",
        "k_proj_weight": "k",
        "v_proj_weight": "v",
        "in_proj_bias": "bias",
        "bias_k": "bias",
        "bias_v": "bias",
        "out_proj.weight": "attn_out",
        "out_proj.bias": "bias",
    }
    assert roles(attention) == expected
    assert roles(attention, with_types=False, prefix="attn.") == {f"attn.{n}": role for n, role in expected.items()}
    # By its name alone an out_proj could be of anything; its type is MultiheadAttention's own.
    assert roles(attention, with_types=False)["out_proj.weight"] == "linear"


def test_a_transformer_layer_whose_path_says_nothing():
    found = roles(nn.TransformerEncoderLayer(8, 2, 16), prefix="net.")
    assert found["net.linear1.weight"] == "linear"  # as in any small network with layers of that name
    found = roles(nn.TransformerEncoderLayer(8, 2, 16), prefix="block.")
    assert found["block.linear1.weight"] == "mlp_in"


# peft 0.21 uses what transformers 5.23 deprecates
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("with_types", [True, False], ids=["types and names", "names alone"])
def test_adapters_outrank_what_they_adapt(networks, with_types):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    adapted = peft.get_peft_model(copy.deepcopy(networks["Llama"]), config)
    prefix = "base_model.model.model."
    expected = {f"base_model.model.{module}": role for module, role in flat(NETWORKS["Llama"][1]).items()}
    for module, letter in {f"{prefix}embed_tokens": "embedding_", f"{prefix}layers.0.self_attn.q_proj": ""}.items():
        expected[f"{module}.base_layer"] = expected.pop(module)
        expected[f"{module}.lora_{letter}A.default"] = "lora_a"
        expected[f"{module}.lora_{letter}B.default"] = "lora_b"
    head = expected.pop("base_model.model.lm_head")
    expected |= {f"base_model.model.lm_head.{copy}": head for copy in ("original_module", "modules_to_save.default")}
    found = roles(adapted, with_types)
    assert {name.removesuffix(".weight"): role for name, role in found.items()} == expected


class LlamaRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class LayerNormLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.layer_norm_weight = nn.Parameter(torch.ones(4))


class PatchEmbedding(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("name", "module", "role"),
    [
        ("attn.proj.weight", nn.Conv2d(2, 2, 1), "conv"),
        ("attn.q.weight", nn.Conv1d(2, 2, 1), "conv"),
        ("norm.weight", nn.Conv2d(2, 2, 1), "conv"),
        ("up_proj.weight", nn.ConvTranspose2d(2, 2, 1), "conv"),
        ("attn.q.weight", nn.LayerNorm(4), "norm"),
        ("attn.q.bias", nn.LayerNorm(4), "norm"),
        ("lm_head.weight", nn.RMSNorm(4), "norm"),
        ("wte.weight", nn.BatchNorm1d(4), "norm"),
        ("mlp.fc1.weight", nn.GroupNorm(2, 4), "norm"),
        ("mlp.fc1.weight", LlamaRMSNorm(), "norm"),
        ("norm.weight", nn.Linear(4, 4), "linear"),
        ("embedding.weight", nn.Linear(4, 4), "linear"),
        ("pos_embed.weight", PatchEmbedding(4, 4), "linear"),
        ("attn.q.weight", nn.Embedding(4, 4), "embedding"),
        ("lm_head.weight", nn.Embedding(4, 4), "embedding"),
        ("bag.weight", nn.EmbeddingBag(4, 4), "embedding"),
        ("pair.weight", nn.Bilinear(2, 2, 2), "linear"),
        ("activation.weight", nn.PReLU(4), "other"),
        ("attn.q.bias", nn.Linear(4, 4), "bias"),
        ("conv.bias", nn.Conv2d(2, 2, 1), "bias"),
    ],
)
def test_types_outrank_names(name, module, role):
    parameter = module.get_parameter(name.rpartition(".")[2])
    assert role_of(name, parameter.ndim, module) == role


def test_a_layer_with_a_norm_inside_is_no_norm():
    found = roles(LayerNormLinear(), prefix="mlp.down_proj.")
    assert found == {"mlp.down_proj.weight": "mlp_out", "mlp.down_proj.layer_norm_weight": "norm"}


@pytest.mark.parametrize(
    ("wrap", "role"),
    [
        (nn.utils.parametrizations.weight_norm, "q"),
        (nn.utils.parametrizations.spectral_norm, "q"),
        (nn.utils.parametrizations.orthogonal, "q"),
    ],
)
def test_parametrized_weights_keep_their_role(wrap, role):
    layer = wrap(nn.Linear(4, 4))
    found = roles(layer, prefix="h.0.attn.q_proj.")
    assert set(found.values()) == {role, "bias"}
    assert roles(layer, with_types=False, prefix="h.0.attn.q_proj.") == found


# Names of networks that are not built here: name, dimensions, role.
NAMES = """
h.0.attn.qkv.weight                                        2 linear      timm, LitGPT
blocks.0.attn.proj.weight                                  2 attn_out
blocks.0.mlp.fc1_g.weight                                  2 mlp_gate
blocks.0.mlp.fc1_x.weight                                  2 mlp_in
blocks.0.ls1.gamma                                         1 other
patch_embed.proj.weight                                    4 conv
pos_embed                                                  3 position
cls_token                                                  3 embedding
head.fc.weight                                             2 head
layers.0.blocks.0.attn.relative_position_bias_table        2 position
model.transformer.h.0.mlp.fc_1.weight                      2 mlp_gate    LitGPT's LLaMAMLP
model.transformer.h.0.mlp.fc_2.weight                      2 mlp_in
model.transformer.h.0.mlp.proj.weight                      2 mlp_out
model.transformer.h.0.attn.qkv.lora_A                      2 lora_a
model.transformer.h.0.attn.qkv.lora_B                      2 lora_b
tok_embeddings.weight                                      2 embedding   Llama as published
layers.0.attention.wq.weight                               2 q
layers.0.attention.wo.weight                               2 attn_out
layers.0.feed_forward.w1.weight                            2 mlp_gate
layers.0.feed_forward.w2.weight                            2 mlp_out
layers.0.feed_forward.w3.weight                            2 mlp_in
layers.0.attention_norm.weight                             1 norm
output.weight                                              2 head
model.layers.0.block_sparse_moe.gate.weight                2 linear      Mixtral's older checkpoints
model.layers.0.block_sparse_moe.experts.3.w1.weight        2 mlp_gate
model.layers.0.block_sparse_moe.experts.3.w2.weight        2 mlp_out
encoder.block.1.layer.1.mlp.router.classifier.weight       2 linear      Switch
encoder.block.1.layer.1.mlp.experts.expert_0.wo.weight     2 mlp_out
model.layers.0.self_attn.q_b_proj.weight                   2 q           DeepSeek
model.layers.0.self_attn.kv_a_proj_with_mqa.weight         2 linear
model.layers.0.mlp.shared_experts.up_proj.weight           2 mlp_in
model.layers.0.self_attn.qkv_proj.weight                   2 linear      Phi-3
model.layers.0.mlp.gate_up_proj.weight                     2 linear
model.layers.0.self_attn.dense.weight                      2 attn_out    Phi
transformer.h.0.mlp.fc_in.weight                           2 mlp_in      GPT-J
transformer.h.0.mlp.fc_out.weight                          2 mlp_out
transformer.blocks.0.attn.Wqkv.weight                      2 linear      MPT
transformer.blocks.0.ffn.down_proj.weight                  2 mlp_out
deberta.encoder.layer.0.attention.self.query_proj.weight   2 q
deberta.encoder.rel_embeddings.weight                      2 position
lm_head.dense.weight                                       2 head        RoBERTa
cls.predictions.transform.dense.weight                     2 head        BERT
cls.predictions.transform.LayerNorm.weight                 1 norm
qa_outputs.weight                                          2 head
model.encoder.layers.0.encoder_attn.k_proj.weight          2 k           Whisper
proj_out.weight                                            2 head
encoder.layers.encoder_layer_0.mlp.0.weight                2 mlp_in      torchvision's ViT
encoder.layers.encoder_layer_0.mlp.3.weight                2 mlp_out
encoder.layers.encoder_layer_0.self_attention.in_proj_weight 2 linear
encoder.layers.encoder_layer_0.ln_1.weight                 1 norm
down.0.attn1.to_q.weight                                   2 q           diffusers
down.0.attn1.to_out.0.weight                               2 attn_out
blocks.0.sa.heads.1.key.weight                             2 k           a lecture's GPT
blocks.0.sa.proj.weight                                    2 attn_out
blocks.0.ffwd.net.0.weight                                 2 mlp_in
blocks.0.ffwd.net.2.weight                                 2 mlp_out
encoder.layers.0.feed_forward.w_1.weight                   2 mlp_in      the annotated transformer
encoder.layers.0.feed_forward.w_2.weight                   2 mlp_out
blocks.0.att.key.weight                                    2 k           RWKV
blocks.0.ffn.key.weight                                    2 mlp_in
blocks.0.ffn.value.weight                                  2 mlp_out
blocks.0.attn.W_Q                                          3 q           TransformerLens
backbone.layers.0.mixer.out_proj.weight                    2 linear      Mamba
backbone.layers.0.mixer.A_log                              2 other
layer1.0.downsample.0.weight                               4 conv        ResNet
layer1.0.downsample.1.weight                               1 norm
layer1.0.downsample.1.bias                                 1 bias
layer1.0.bn2.bias                                          1 norm
fc.weight                                                  2 head
model.fc.weight                                            2 head
model.resnet.fc.weight                                     2 head
layer1.0.se.fc.weight                                      2 linear
features.denseblock1.denselayer1.norm1.bias                1 norm        DenseNet
classifier.6.weight                                        2 head        VGG
fc1.weight                                                 2 linear      a small network
net.fc2.weight                                             2 linear
model.linear1.weight                                       2 linear
net.0.weight                                               2 linear
mlp.fc1.weight                                             2 mlp_in
fc1.bias                                                   1 bias
conv1.weight_v                                             4 conv        torch.nn.utils.weight_norm
policy.q.weight                                            2 linear      reinforcement learning
critic.value.weight                                        2 linear
lstm.weight_ih_l0                                          2 linear
lstm.bias_hh_l0                                            1 bias
bias_proj.weight                                           2 linear
temperature                                                0 other
scale                                                      1 other
model.normal_head.weight                                   2 head        not a norm
layers.0.self_attn._checkpoint_wrapped_module.out_proj.weight 2 attn_out
""".strip().splitlines()


@pytest.mark.parametrize("line", NAMES)
def test_names_alone(line):
    name, ndim, role = line.split()[:3]
    assert role_of(name, int(ndim)) == role


def test_every_role_is_one_of_the_list_and_every_one_is_met(networks):
    met = {role for network in networks.values() for role in roles(network).values()}
    met |= {role_of(line.split()[0], int(line.split()[1])) for line in NAMES}
    assert met == set(ROLES)


@pytest.mark.parametrize("ndim", range(6))
@pytest.mark.parametrize("name", ["", "w", "weight", "bias", "a.b.c", "0.weight", "norm", "..", "é.weight", "x" * 500])
def test_any_name_has_a_role(name, ndim):
    assert role_of(name, ndim) in ROLES
