"""Reading what TensorBoard shows of a folder."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext


def events(folder: str | Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def provider(folder: Path) -> MultiplexerDataProvider:
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def hparams(folder: Path) -> tuple[list[str], list[str], list[dict[str, float]]]:
    """TensorBoard's HPARAMS tab: hyperparameters and metrics it has columns for, and each run's values."""
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    context = backend_context.Context(TBContext(data_provider=provider(folder)))
    experiment = get_experiment.Handler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=[api_pb2.STATUS_SUCCESS], slice_size=10)
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    return (
        [info.name for info in experiment.hparam_infos],
        [info.name.tag for info in experiment.metric_infos],
        [{value.name.tag: value.value for value in group.metric_values} for group in groups],
    )
