"""Trains a language model and records its trajectory.

python -m recipes.gpt.train fit --config recipes/gpt/cpu.yaml
python -m recipes.gpt.train fit --config recipes/gpt/cpu.yaml --data.data_path=path/to/text.txt
python -m recipes.gpt.train fit --help
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

from recipes.cli import TrajectoryCLI, run
from recipes.gpt.data import TextData
from recipes.gpt.model import LanguageModel


class LanguageModelCLI(TrajectoryCLI):
    """What the model has from the text is not to be said twice."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.context", "model.context", apply_on="instantiate")
        parser.link_arguments("data.vocabulary", "model.vocabulary", apply_on="instantiate")


if __name__ == "__main__":
    run(LanguageModel, TextData, LanguageModelCLI)
