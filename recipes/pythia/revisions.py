"""Revisions of a model as Pythia has them: a Hugging Face folder for each step, named after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.utils.logging import disable_progress_bar

from lightning_traj import LogSpaced
from lightning_traj.files.atomic import replace_together
from lightning_traj.schedule import Schedule

PYTHIA = LogSpaced(1000)
LAST = 143_000
PUBLISHED = (0, *(step for step in range(1, LAST + 1) if PYTHIA.due_after_step(step)))
"""The 154 steps that Pythia was published at: 0, 1, 2, 4, …, 512, 1000, 2000, …, 143000."""


class SaveRevisions(Callback):
    """Saves the module's ``network`` as ``step0``, ``step1``, … by ``save_pretrained``; sharded ones are gathered.

    Args:
        dirpath: folder of these; None: ``revisions`` beside the logs.
        schedule: when, besides before the first step; the default is that of Pythia.
    """

    def __init__(self, dirpath: Path | None = None, schedule: Schedule = PYTHIA) -> None:
        self.dirpath, self.schedule, self.saved = dirpath, schedule, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        disable_progress_bar()  # transformers has one for each revision
        if self.dirpath is None:
            self.dirpath = Path(trainer.log_dir or trainer.default_root_dir, "revisions")
        if trainer.global_step:  # resumed: what is there already is of this run
            return
        if any(self.dirpath.glob("step*")):
            raise FileExistsError(f"dirpath={self.dirpath}: it holds revisions of another run; name a new folder")
        trainer.strategy.barrier()  # all have looked before the first one is there
        self.save(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != self.saved and self.schedule.due_after_step(trainer.global_step):
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.dirpath is not None
        self.saved = trainer.global_step  # a step may take several batches
        network: Any = pl_module.network
        state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if trainer.is_global_zero:
            name = f"step{trainer.global_step}"
            earlier = [name] if (self.dirpath / name).exists() else []
            with replace_together(self.dirpath, earlier) as temporary:
                network.save_pretrained(temporary / name, state_dict=state)
