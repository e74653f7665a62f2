"""An image classifier, trained by SGD with momentum and weight decay as the papers of its networks do."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from recipes.resnet.networks import build


class ImageClassifier(L.LightningModule):
    """A network of networks.py, its loss, its accuracy and its optimizer.

    Args:
        network: "resnet" and "vgg16" are for images of 32x32, "resnet50" for 224x224.
        depth: of "resnet", 6n + 2; None is 20. The others have one depth.
        width: channels of the first stage; None is the paper's, 16 for "resnet" and 64 for the others.
        classes: number of classes, that of the data.
        learning_rate: at the start.
        momentum: of SGD, without Nesterov's correction.
        weight_decay: on all parameters, BatchNorm's included, as in the papers.
        schedule: "steps" multiplies the learning rate by `decay` at each milestone; "cosine" lets it fall to
            zero over the whole run, batch by batch.
        milestones: epochs at whose start the learning rate drops; for "steps".
        decay: the factor of each drop; for "steps".
    """

    def __init__(
        self,
        network: Literal["resnet", "resnet50", "vgg16"] = "resnet",
        depth: int | None = None,
        width: int | None = None,
        classes: int = 10,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: Literal["steps", "cosine"] = "steps",
        milestones: tuple[int, ...] = (),
        decay: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = build(network, depth, width, classes)
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def setup(self, stage: str) -> None:
        found = getattr(getattr(self.trainer, "datamodule", None), "classes", None)
        settings: Any = self.hparams
        if found not in (None, settings.classes):
            raise ValueError(f"classes={settings.classes}: the data have {found}; set --model.classes={found}")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        scores = self(images)
        self.accuracy(scores, labels)
        self.log("val/loss", F.cross_entropy(scores, labels), prog_bar=True, sync_dist=True)
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings: Any = self.hparams
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        if settings.schedule == "cosine":
            batches = int(self.trainer.estimated_stepping_batches)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=batches)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
        drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, settings.milestones, settings.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": drops, "interval": "epoch"}}
