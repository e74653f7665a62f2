"""Convolutional networks with BatchNorm, in the sizes of their papers.

resnet:   He et al. (2015), "Deep Residual Learning for Image Recognition", 4.2, for 32x32 images. A 3x3 convolution,
          three stages of 16, 32 and 64 channels, global average pooling, one linear layer. Shortcuts are identities,
          and where the shape changes 1x1 convolutions without BatchNorm (the paper's option B). ResNet-20 has 272,282
          parameters, of which 1,376 are BatchNorm scalars.
resnet50: the same paper, table 1, for 224x224 images and 1,000 classes: 25,557,032 parameters. The stride of a block is
          in its 3x3 convolution, as in every implementation that is in use ("v1.5"); the paper had it in the first 1x1.
vgg16:    Simonyan and Zisserman (2015), configuration D, as is customary for 32x32 images: BatchNorm after every
          convolution, and one linear layer instead of three. 14,724,042 parameters. The convolutions have no
          bias, which BatchNorm would cancel: it would have no gradient, and its path would be made of rounding errors.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def initialise(network: nn.Module) -> None:
    """Convolutions after He et al. (2015), "Delving Deep into Rectifiers": normal, by the number of outputs."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


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
        initialise(self)

    @staticmethod
    def _stage(n: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, stride=1) for _ in range(n - 1)))

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, 32, 32] -> [B, classes]
        x = F.relu(self.bn(self.conv(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean(dim=(2, 3)))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with BatchNorm, and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, H, W] -> [B, 4 width, H / stride, W / stride]
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks; width is that of the first stage's bottlenecks."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = self._stage(3, width, width, stride=1)
        self.stage2 = self._stage(4, 4 * width, 2 * width, stride=2)
        self.stage3 = self._stage(6, 8 * width, 4 * width, stride=2)
        self.stage4 = self._stage(3, 16 * width, 8 * width, stride=2)
        self.head = nn.Linear(32 * width, classes)
        initialise(self)

    @staticmethod
    def _stage(n: int, inputs: int, width: int, stride: int) -> nn.Sequential:
        rest = (Bottleneck(4 * width, width, stride=1) for _ in range(n - 1))
        return nn.Sequential(Bottleneck(inputs, width, stride), *rest)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, 224, 224] -> [B, classes]
        x = F.max_pool2d(F.relu(self.bn(self.conv(images))), 3, stride=2, padding=1)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.head(x.mean(dim=(2, 3)))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five stages, each with BatchNorm, and each stage halved by its maxima."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        channels = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        inputs = [3, *channels]
        stages = zip((2, 2, 3, 3, 3), inputs, channels, strict=False)
        self.stages = nn.Sequential(*(self._stage(*stage) for stage in stages))
        self.head = nn.Linear(channels[-1], classes)
        initialise(self)

    @staticmethod
    def _stage(n: int, inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(n):
            convolution = nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, 32, 32] -> [B, classes]
        if min(images.shape[-2:]) < 32:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]}: network=vgg16 halves them five times, and needs at "
                "least 32x32; network=resnet takes smaller ones"
            )
        return self.head(self.stages(images).mean(dim=(2, 3)))


NETWORKS = {"resnet": ResNet, "resnet50": ResNet50, "vgg16": VGG16}


def build(network: str, depth: int | None, width: int | None, classes: int) -> nn.Module:
    """One of the networks; None is the size of its paper."""
    if depth is not None and network != "resnet":
        raise ValueError(f"depth={depth}: network={network} has one depth; leave it out, or take network=resnet")
    sizes = {"depth": depth, "width": width}
    return NETWORKS[network](classes=classes, **{name: size for name, size in sizes.items() if size is not None})
