"""TensorBoard: loggers that write event files with a ``SummaryWriter``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_traj.files import is_remote, local_path
from lightning_traj.loggers.adapter import LoggerAdapter
from lightning_traj.loggers.folders import as_folder
from lightning_traj.loggers.images import ImageAdapter
from lightning_traj.loggers.layout import custom_scalars
from lightning_traj.measures import shown_in


class TensorBoardAdapter(LoggerAdapter):
    """A logger whose ``experiment`` is a ``SummaryWriter``, of torch or of tensorboardX, such as TensorBoardLogger."""

    takes_pictures = True

    @classmethod
    def fits(cls, logger: Any) -> bool:  # noqa: D102 (see LoggerAdapter)
        try:
            experiment = getattr(logger, "experiment", None)
        except Exception:  # the error will come again when something is logged
            return False
        # The name of the class decides, since Lightning's DummyLogger has every attribute.
        return any(base.__name__ == "SummaryWriter" for base in type(experiment).__mro__)

    def log_picture(self, tag: str, pixels: Any, step: int) -> None:  # noqa: D102
        if ImageAdapter.fits(self.logger):  # a subclass that has its own way
            ImageAdapter(self.logger).log_picture(tag, pixels, step)
        else:
            # Not add_figure, which imports pyplot and thereby chooses a backend for the user.
            self.logger.experiment.add_image(tag, pixels, global_step=step, dataformats="HWC")

    def log_text(self, tag: str, text: str, step: int) -> None:  # noqa: D102
        self.logger.experiment.add_text(tag, text, global_step=step)

    def add_layout(self, prefixes: Sequence[str]) -> None:  # noqa: D102
        self.logger.experiment.add_custom_scalars(custom_scalars(prefixes, self._full_tag))

    def announce_columns(self, hyperparameters: Mapping[str, Any], prefixes: Sequence[str], finished: bool) -> None:
        """Make the measures columns of the HPARAMS tab.

        The tab shows the last value of each column's curve, so it is enough to announce columns. TensorBoard uses the
        first list of columns in a run and ignores all later ones. There are two cases:

        - Lightning writes a list when training starts that has nothing but its placeholder ``hp_metric``. Our list,
          which contains the placeholder too, has to come first, in ``on_fit_start``.
        - With ``TensorBoardLogger(default_hp_metric=False)`` Lightning writes no list, so the user's module is free to
          announce its own metrics. Our list has to come last, in ``on_train_end`` with ``finished=True``. If the user
          has announced metrics, the columns are these and no others.

        Of several runs in one folder, TensorBoard uses the columns of whichever it reads first.
        """
        placeholder = getattr(self.logger, "_default_hp_metric", None)
        if placeholder is None or placeholder is finished:
            return
        columns = [self._full_tag(f"{prefix}/{name}") for prefix in prefixes for name in shown_in("hyperparameters")]
        if placeholder:
            columns.insert(0, "hp_metric")
        # Lightning would also log given values at step 0 of their curves; an empty dict gives it none.
        self.logger.log_hyperparams(dict(hyperparameters), {column: {} for column in columns})

    def event_folder(self) -> str | None:  # noqa: D102
        folder = as_folder("save_dir", self.logger.save_dir)
        return folder if folder is None or is_remote(folder) else str(local_path(folder))

    def _full_tag(self, tag: str) -> str:
        """Return the tag under which a logger with ``prefix=`` logs what it is given as `tag`."""
        prefix = getattr(self.logger, "_prefix", "")
        if not prefix or not isinstance(prefix, str):
            return tag
        return f"{prefix}{getattr(self.logger, 'LOGGER_JOIN_CHAR', '-')}{tag}"
