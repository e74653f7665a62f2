"""Runs of models with fused attention: q, k and v of the trajectory are those of the weights during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from lightning_traj import Trajectory, TrajectoryCallback, measures
from lightning_traj.trajectory import by_layer as layers

WIDTH, HEADS, LAYERS, VOCABULARY = 24, 4, 3, 17
Slice = Callable[[Tensor], Tensor]


class LanguageModel(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = self.make()
        self.witnessed: list[dict[str, Tensor]] = []

    def witness(self) -> None:
        self.witnessed.append({name: p.detach().double().clone() for name, p in self.net.named_parameters()})

    def on_train_start(self) -> None:
        self.witness()

    def on_train_epoch_end(self) -> None:
        self.witness()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class NeoX(LanguageModel):
    weight = "gpt_neox.layers.{}.attention.query_key_value.weight"

    def make(self) -> nn.Module:
        config = GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=32,
            max_position_embeddings=16,
        )
        return GPTNeoXForCausalLM(config)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(input_ids=batch, labels=batch).loss

    @staticmethod
    def part(weight: Tensor, i: int) -> Tensor:
        return weight.view(HEADS, 3, WIDTH // HEADS, WIDTH)[:, i]  # per head


class Encoder(LanguageModel):
    weight = "1.layers.{}.self_attn.in_proj_weight"

    def make(self) -> nn.Module:
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), encoder, nn.Linear(WIDTH, VOCABULARY))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    @staticmethod
    def part(weight: Tensor, i: int) -> Tensor:
        return weight.view(3, WIDTH, WIDTH)[i]  # thirds


def batches() -> DataLoader[Any]:
    tokens = torch.randint(VOCABULARY, (24, 12), generator=torch.Generator().manual_seed(0))
    return DataLoader(tokens, batch_size=8)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [NeoX, Encoder])
@pytest.mark.parametrize("mode", ["sketch", "full"])
def test_q_k_and_v_are_those_of_the_run(fit: Any, model: Any, mode: Any) -> None:
    callback = TrajectoryCallback(snapshot=mode, sketch_dim=4096)
    trainer = fit(callback, module=model, data=batches(), max_epochs=4)
    trajectory, witnessed = callback.trajectory, trainer.lightning_module.witnessed
    by_role = {}
    for i, role in enumerate("qkv"):
        parts = [[model.part(s[model.weight.format(layer)], i).flatten() for layer in range(LAYERS)] for s in witnessed]
        by_role[role] = np.stack([torch.cat(row).numpy() for row in parts])
        # The sketch keeps blocks of at most 4,096 entries whole, displacements of them in float32.
        tolerance = 1e-12 if mode == "full" else 1e-7
        np.testing.assert_allclose(trajectory.gram(f"role:{role}"), by_role[role] @ by_role[role].T, rtol=tolerance)
    numel = sum(parameter.numel() for parameter in trainer.lightning_module.parameters())
    assert sum(block.numel for block in trajectory.blocks) == numel

    rows = layers.attention(trajectory)
    assert len(rows) == LAYERS
    for layer, row in enumerate(rows.values()):
        size = WIDTH * WIDTH
        expected = {}
        for role, vectors in by_role.items():
            mine = vectors[:, layer * size : (layer + 1) * size]
            expected[role] = measures.mean_directional_similarity(measures.trajectory_map(mine @ mine.T))
        assert {role: row[role] for role in "qkv"} == pytest.approx(expected, abs=1e-7)
        assert row["heterogeneity"] == pytest.approx(max(expected.values()) - min(expected.values()), abs=1e-7)


def test_the_table_and_its_file(fit: Any, tmp_path: Any) -> None:
    callback = TrajectoryCallback()
    fit(callback, module=NeoX, data=batches(), max_epochs=2)
    trajectory = Trajectory.load(tmp_path / "trajectory.safetensors")
    for label, row in callback.trajectory.table("depth x role").items():
        assert trajectory.table("depth x role")[label] == pytest.approx(row, nan_ok=True)
    depth = trajectory.table("depth")
    assert [label for label in depth if "layers" in label] == [f"net.gpt_neox.layers.{i}" for i in range(LAYERS)]
    assert sum(row["numel"] for row in depth.values()) == sum(row["numel"] for row in trajectory.table("role").values())
    for layer in range(LAYERS):
        label = f"net.gpt_neox.layers.{layer}"
        assert depth[label]["mds"] == trajectory.summary(f"layer:{label}")["mds"]
    assert set(trajectory.table("role")) == {
        "embedding", "norm", "bias", "q", "k", "v", "attn_out", "mlp_in", "mlp_out", "head"
    }  # fmt: skip
