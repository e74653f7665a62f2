"""Language models from scratch: GPT-NeoX, the architecture of Pythia, and GPT-2, as transformers builds them.

Sizes and optimizer of Pythia are those of Biderman et al. (2023), "Pythia: A Suite for Analyzing Large Language Models
Across Training and Scaling", arXiv:2304.01373, and of the configurations published with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torchmetrics.text import Perplexity
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

Architecture = Literal["gpt-neox", "gpt2"]


class Size(NamedTuple):
    """Shape of a network; its vocabulary is padded to a multiple, as it was for the published ones."""

    width: int
    depth: int
    heads: int
    multiple: int = 1


SIZES: Mapping[Architecture, Mapping[str, Size]] = {
    "gpt-neox": {  # Pythia
        "14m": Size(128, 6, 4, 128),
        "31m": Size(256, 6, 8, 128),
        "70m": Size(512, 6, 8, 128),
        "160m": Size(768, 12, 12, 128),
        "410m": Size(1024, 24, 16, 128),
        "1b": Size(2048, 16, 8, 128),
        "1.4b": Size(2048, 24, 16, 128),
        "2.8b": Size(2560, 32, 32, 128),
        "6.9b": Size(4096, 32, 32, 256),
        "12b": Size(5120, 36, 40, 512),
    },
    "gpt2": {
        "gpt2": Size(768, 12, 12),
        "gpt2-medium": Size(1024, 24, 16),
        "gpt2-large": Size(1280, 36, 20),
        "gpt2-xl": Size(1600, 48, 25),
    },
}


class LanguageModel(L.LightningModule):
    """Predicts the next token; trained by AdamW with a linear warm-up and a cosine to a tenth of the learning rate.

    Weight decay is on matrices alone, as usual: not on biases and norms. There is no dropout. The parameters have their
    shapes from the start, on the meta device, and their values once a Trainer begins, or ``configure_model()`` is
    called: under ``ModelParallelStrategy`` they are sharded block by block (FSDP2), so that no process ever holds
    the whole network, and the values are those of one device, if all processes have the same seed.

    Args:
        architecture: "gpt-neox": rotary positions, attention and feed-forward in parallel, a head of its own;
            "gpt2": learned positions, a head that is tied to the embedding.
        size: a published one, for width, depth and heads: those of Pythia ("14m" to "12b") or of GPT-2 ("gpt2" to
            "gpt2-xl"). The table of embeddings is padded as theirs is: 50,277 tokens, those of Pythia's tokenizer, make
            networks of the published numbers of parameters.
        width: of the residual stream, where size is None; a multiple of heads, at least four times as many.
        depth: blocks.
        heads: of attention.
        context: tokens that a prediction can look back on.
        vocabulary: number of tokens.
        learning_rate: at its highest.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: steps until the learning rate is at its highest.
    """

    def __init__(
        self,
        architecture: Architecture = "gpt-neox",
        size: str | None = None,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        context: int = 128,
        vocabulary: int = 256,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps}: pass 0 or more")
        shape = Size(width, depth, heads) if size is None else published_size(architecture, size)
        with torch.device("meta"):
            self.network = build(architecture, shape, context, vocabulary)
        self.perplexity = Perplexity()

    def configure_model(self) -> None:
        if not next(self.parameters()).is_meta:  # loaded, or set up by an earlier call
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        device = torch.get_default_device() if mesh is None else torch.device(mesh.device_type)
        network, seen = self.network, set[nn.Module]()
        for part in (*blocks_of(network), network):
            new = [module for module in part.modules() if module not in seen]
            seen.update(new)
            for module in new:
                module.to_empty(device=device, recurse=False)
            for module in reversed(new):  # children first: GPT-2 draws those on the residual stream anew, smaller
                network._init_weights(module)
            network.tie_weights()
            if mesh is not None:
                fully_shard(part, mesh=mesh)

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T] -> [B, T, vocabulary]
        return self.network(input_ids=tokens).logits

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:  # [B, context + 1]
        scores, targets = self(tokens[:, :-1]), tokens[:, 1:]
        loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, tokens: Tensor, batch_idx: int) -> None:
        scores, targets = self(tokens[:, :-1]), tokens[:, 1:]
        self.perplexity(scores, targets)
        loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten())
        self.log("val/loss", loss, prog_bar=True, sync_dist=True)
        self.log("val/perplexity", self.perplexity, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings: Any = self.hparams
        parameters = list(self.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=tuple(settings.betas))
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "max_steps=-1, max_epochs=-1: the learning rate falls over the whole run, so its end has to be known: "
                "pass max_steps or max_epochs to the Trainer"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, settings.warmup_steps, int(steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate_at(step: int, warmup: int, steps: int) -> float:
    """Share of the learning rate at a step, counted from 0: up to 1 as a line, down to 0.1 as a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * cos(pi * min(1.0, (step - warmup) / max(1, steps - warmup)))


def published_size(architecture: Architecture, size: str) -> Size:
    if size not in SIZES[architecture]:
        elsewhere = [other for other, sizes in SIZES.items() if size in sizes]
        remedy = (
            f"that is one of architecture={elsewhere[0]}" if elsewhere else f"take {', '.join(SIZES[architecture])}"
        )
        raise ValueError(f"size={size}: architecture={architecture} has no such size; {remedy}")
    return SIZES[architecture][size]


def build(architecture: Architecture, size: Size, context: int, vocabulary: int) -> PreTrainedModel:
    """The network of transformers, with its initial values where it is not on the meta device."""
    for name, value in (*size._asdict().items(), ("context", context), ("vocabulary", vocabulary)):
        if value < 1:
            raise ValueError(f"{name}={value}: pass a positive number")
    if size.width % size.heads or size.width < 4 * size.heads:  # below 4 rotary positions turn nothing
        raise ValueError(
            f"heads={size.heads}: they do not share out width={size.width} evenly, 4 or more to each; take a divisor "
            "of the width"
        )
    vocabulary = -(-vocabulary // size.multiple) * size.multiple
    tokens: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": False,
    }  # what only generation needs
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=size.width,
                n_layer=size.depth,
                n_head=size.heads,
                n_positions=context,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **tokens,
            )
        )
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            max_position_embeddings=context,
            **tokens,
        )
    )


def blocks_of(network: Any) -> nn.ModuleList:
    return network.transformer.h if isinstance(network, GPT2LMHeadModel) else network.gpt_neox.layers
