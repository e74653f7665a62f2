"""Trains a ResNet and records its trajectory.

python -m recipes.resnet.train fit --config recipes/resnet/demo.yaml
python -m recipes.resnet.train fit --config recipes/resnet/demo.yaml --model.momentum=0
python -m recipes.resnet.train fit --help
"""

from __future__ import annotations

from recipes.cli import run
from recipes.resnet.data import ImageData
from recipes.resnet.model import ImageClassifier

if __name__ == "__main__":
    run(ImageClassifier, ImageData)
