"""A series of checkpoints -> its trajectory in sketches, with rows that can be compared with those of other runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_traj.checkpoints.resumption import Resumption
from lightning_traj.checkpoints.series import Series, check_finite
from lightning_traj.checkpoints.streaming import Advance
from lightning_traj.recording import Recorder
from lightning_traj.trajectory import Trajectory


def sketched_trajectory(
    series: Series, recorder: Recorder, parameters: Iterable[str], resumption: Resumption, advance: Advance
) -> tuple[Trajectory, list[int]]:
    """Return the trajectory of sketches with its rows, and the indices of the checkpoints in it.

    Args:
        series: The checkpoints in order.
        recorder: Recorder that sketches them.
        parameters: Names of the parameters.
        resumption: File with the state of the recorder.
        advance: Function that is told the number of entries that have been taken in.
    """
    dropped: list[int] = []
    if (kept := resumption.load()) is not None:
        try:
            recorder.load_state_dict(kept["state"])
            recorder.collect()
            dropped = list(kept["dropped"])
        except Exception:
            recorder.clear()

    def state() -> dict[str, Any]:
        return {"dropped": dropped, "state": recorder.state_dict()}

    try:
        for step, epoch, checkpoint in zip(
            series.steps.tolist(), series.epochs.tolist(), series.checkpoints, strict=True
        ):
            if step not in (*recorder.state.history.steps, *dropped):
                present = [name for name in parameters if name in checkpoint.shapes]
                recorder.record({name: checkpoint.read(name) for name in present}, step, epoch)
                checkpoint.release()
                if not recorder.state.gram.finite[-1]:  # collecting takes longer than recording
                    dropped.extend(recorder.collect()[1])
                resumption.save(state)
            advance(sum(block.numel for block in recorder.state.blocks))
    finally:
        if len(recorder):
            resumption.save(state, now=True)
    check_finite(len(recorder), len(series.checkpoints))
    trajectory = recorder.collect()[0]
    rows = recorder.rows()
    steps = series.steps.tolist()
    return trajectory if rows is None else trajectory.with_sketches(rows), [
        steps.index(s) for s in recorder.state.history.steps
    ]
