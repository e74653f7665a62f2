"""What the commands import: nothing that takes longer than reading most folders of checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

SLOW = ["lightning", "pytorch_lightning", "torchmetrics", "transformers", "scipy", "sklearn", "pandas", "torch._dynamo"]


def slow_modules_of_command(*arguments):
    """Which of the slow modules a command has loaded when it is done."""
    program = f"""
import sys
from lightning_traj.cli import main
assert main({[str(argument) for argument in arguments]}) == 0
print("slow:", *[name for name in {SLOW} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].removeprefix("slow:").split())


@pytest.fixture
def hugging_face(tmp_path):
    """Two folders as transformers writes them, with a config.json."""
    config = {"model_type": "gpt2", "architectures": ["GPT2Model"], "n_layer": 1, "n_embd": 8, "n_head": 2}
    for step in (0, 10):
        folder = tmp_path / "hugging_face" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 11, "n_positions": 8}))
        torch.save({"wte.weight": torch.full((11, 8), 1.0 + step)}, folder / "pytorch_model.bin")
    return tmp_path / "hugging_face"


def test_the_commands_load_neither_lightning_nor_torchmetrics_nor_transformers(tmp_path, hugging_face):
    """Importing them takes longer than reading most folders of checkpoints."""
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        for step in range(3):
            state = {"net.0.weight": torch.eye(3) + step, "net.2.weight": torch.arange(6.0).view(2, 3) * step}
            torch.save({"state_dict": state, "global_step": 10 * step}, tmp_path / run / f"step={10 * step}.ckpt")
        analyze = ("analyze", tmp_path / run, "--out", tmp_path / f"{run}_out", "--csv")
        assert slow_modules_of_command(*analyze, *["--sketch"] * (run == "b")) == set()
    compared = (tmp_path / "a_out", tmp_path / "b_out")
    assert slow_modules_of_command("compare", *compared, "--out", tmp_path / "compared") == set()
    # A config.json needs transformers: the check can fail.
    assert "transformers" in slow_modules_of_command("analyze", hugging_face, "--out", tmp_path / "hf_out")
