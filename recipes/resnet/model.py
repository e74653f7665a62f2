"""ResNet-20 for 32x32 images, after He et al. (2015), "Deep Residual Learning for Image Recognition", 4.2.

A 3x3 convolution, three stages of 16, 32 and 64 channels, global average pooling, one linear layer. Shortcuts
are identities, and where the shape changes 1x1 convolutions without BatchNorm (the paper's option B).
ResNet-20 has 272,282 parameters, of which 1,376 are BatchNorm scalars.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """The paper's family: depth 6n + 2 has n blocks a stage, width is the channels of the first stage."""

    def __init__(self, depth: int = 20, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise ValueError(f"depth={depth}: these networks have depth 6n + 2, such as 20, 32, 44 or 56")
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = self._stage(n, width, width, stride=1)
        self.stage2 = self._stage(n, width, 2 * width, stride=2)
        self.stage3 = self._stage(n, 2 * width, 4 * width, stride=2)
        self.head = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(n: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, stride=1) for _ in range(n - 1)))

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, 32, 32] -> [B, classes]
        x = F.relu(self.bn(self.conv(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean(dim=(2, 3)))


class ImageClassifier(L.LightningModule):
    """A ResNet trained by SGD with momentum and weight decay.

    Args:
        depth: 6n + 2; 20 is ResNet-20.
        width: channels of the first stage.
        classes: number of classes.
        learning_rate: at the start.
        momentum: of SGD, without Nesterov's correction.
        weight_decay: on all parameters, BatchNorm's included, as in the paper.
        schedule: "steps" multiplies the learning rate by `decay` at each milestone; "cosine" lets it fall to
            zero over the whole run, batch by batch.
        milestones: epochs at whose start the learning rate drops; for "steps".
        decay: the factor of each drop; for "steps".
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
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
        self.network = ResNet(depth, width, classes)
        self.accuracy = MulticlassAccuracy(classes, average="micro")

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
        self.log("val/loss", F.cross_entropy(scores, labels), prog_bar=True)
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
