"""Figures by layer and role: what they show, that they can be read, and that they are few and soon drawn."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import assert_readable, words
from lightning_traj import measures
from lightning_traj.blocks.block import Block
from lightning_traj.plots import labels, to_rgb
from lightning_traj.plots import layers as layer_plot
from lightning_traj.plots import trajectory as plot
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.trajectory import Trajectory, Windows
from lightning_traj.trajectory import by_layer as layers

pytestmark = pytest.mark.usefixtures("one_thread")

Shapes = dict[str, tuple[int, ...]]
HEATMAPS = ["mds", "mds_relative", "update_angle", "direction_drift"]
ALL = [*HEATMAPS, "roles", "heterogeneity", "different", "role_maps"]
UNDEFINED = "hatched: undefined\n(zero vector)"


def transformer(depth: int, stem: str = "transformer.h") -> Shapes:
    shapes: Shapes = {"transformer.wte.weight": (9, 4), "transformer.wpe.weight": (5, 4)}
    for i in range(depth):
        for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.fc_in", "mlp.fc_out"):
            shapes |= {f"{stem}.{i}.{name}.weight": (4, 4), f"{stem}.{i}.{name}.bias": (4,)}
        shapes |= {f"{stem}.{i}.ln_1.weight": (4,), f"{stem}.{i}.ln_1.bias": (4,)}
    return shapes | {"transformer.ln_f.weight": (4,), "lm_head.weight": (9, 4)}


def resnet() -> Shapes:
    shapes: Shapes = {"conv1.weight": (4, 3, 3, 3), "bn1.weight": (4,)}
    for place in (f"layer{i}.{j}" for i in range(1, 4) for j in range(3)):
        for k in (1, 2):
            shapes |= {
                f"{place}.conv{k}.weight": (4, 4, 3, 3),
                f"{place}.bn{k}.weight": (4,),
                f"{place}.bn{k}.bias": (4,),
            }
    return shapes | {"fc.weight": (10, 4), "fc.bias": (10,)}


MLP: Shapes = {f"net.{i}.{name}": shape for i in (0, 2, 4) for name, shape in (("weight", (5, 5)), ("bias", (5,)))}


def record(
    shapes: Mapping[str, tuple[int, ...]],
    n: int,
    still: Callable[[str], bool] = lambda name: False,
    epochs: Sequence[float] = (),
    size: float = 0.1,
) -> Trajectory:
    """A walk that slows down; biases start at zero, and what is still doesn't move."""
    rng = np.random.default_rng(0)
    theta = {name: np.zeros(s) if "bias" in name else rng.standard_normal(s) for name, s in shapes.items()}
    recorder = Recorder(RecordingSettings(sketch_dim=64))
    epochs = epochs or range(n)
    for epoch in epochs:
        recorder.record({name: torch.tensor(values) for name, values in theta.items()}, round(10 * epoch), epoch)
        for name in theta:
            if not still(name):
                theta[name] = theta[name] + size / (1 + epoch / 10) * (0.3 + rng.standard_normal(shapes[name]))
    return recorder.collect()[0]


def encoder_decoder(depth: int) -> Shapes:
    """Names as T5's."""
    shapes: Shapes = {"shared.weight": (9, 4)}
    for side, kinds in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for block in (f"{side}.block.{i}.layer" for i in range(depth)):
            for j, kind in enumerate(kinds):
                shapes |= {f"{block}.{j}.{kind}.{role}.weight": (4, 4) for role in "qkvo"}
                shapes |= {f"{block}.{j}.layer_norm.weight": (4,)}
            shapes |= {f"{block}.{len(kinds)}.DenseReluDense.{name}.weight": (4, 4) for name in ("wi", "wo")}
    return shapes


MANY_KINDS: Shapes = {
    f"{'abcdefghijkl'[i]}_stage.attn{i}.{role}_proj.weight": (4, 4) for i in range(12) for role in "qkv"
}

CASES: dict[str, Callable[[], Trajectory]] = {
    "transformer": lambda: record(transformer(12), 30),
    "two snapshots": lambda: record(transformer(3), 2),
    "three snapshots": lambda: record(transformer(3), 3),
    "long": lambda: record(transformer(2), 200),
    "log-spaced": lambda: record(transformer(2), 0, epochs=[0, *(2**k for k in range(16))]),
    "deep": lambda: record(transformer(60), 5),
    "very deep": lambda: record(transformer(150), 4),
    "long names": lambda: record(transformer(3, "base_model.model.encoder.some_very_long_name_of_a_module.layers"), 6),
    "resnet": lambda: record(resnet(), 12),
    "mlp": lambda: record(MLP, 12),
    "half frozen": lambda: record(transformer(6), 12, still=lambda name: any(f".{i}." in name for i in range(3))),
    "standing still": lambda: record(transformer(2), 5, still=lambda name: True),
    "tiny moves": lambda: record(transformer(3), 12, size=1e-8),
    "encoder-decoder": lambda: record(encoder_decoder(6), 8),
    "deep encoder-decoder": lambda: record(encoder_decoder(48), 3),
    "many kinds of attention": lambda: record(MANY_KINDS, 6),
    "one module": lambda: record({"w.weight": (4, 4), "w.bias": (4,)}, 5),
}


@cache
def example(case: str) -> Trajectory:
    return CASES[case]()


def draw(case: str, name: str) -> Figure:
    return layer_plot.layer_figures(example(case))[name]()


def row_names(axes: Axes) -> list[str]:
    """What is written to the left of a heatmap."""
    return [text.get_text() for text in axes.texts if text.get_position()[0] < 0]


def matrix(axes: Axes) -> np.ma.MaskedArray[Any, Any]:
    """The cells of a heatmap; the last image is the bar."""
    return np.ma.asarray(axes.images[-2].get_array())


@pytest.mark.parametrize("case", CASES)
def test_everything_written_is_inside_the_figure_and_apart(case: str) -> None:
    for name, figure in layer_plot.layer_figures(example(case)).items():
        drawn = figure()
        assert_readable(drawn)
        assert max(drawn.get_size_inches()) <= 10, name
        assert drawn.texts[1].get_text().startswith(example(case).counted())


@pytest.mark.parametrize(
    ("case", "names"),
    {
        "transformer": ALL,
        "very deep": ALL,
        "two snapshots": ["mds", "heterogeneity", "different", "role_maps"],
        "resnet": [name for name in ALL if name != "heterogeneity"],
        "mlp": [name for name in ALL if name != "heterogeneity"],
        "one module": ["different", "role_maps"],
    }.items(),
)
def test_figures_are_those_that_make_sense(case: str, names: list[str]) -> None:
    assert list(layer_plot.layer_figures(example(case))) == names


def test_without_layers_roles_or_steps_there_is_no_figure() -> None:
    assert layer_plot.layer_figures(record({"w": (3, 3)}, 5)) == {}
    assert layer_plot.layer_figures(record(transformer(2), 1)) == {}
    assert list(layer_plot.layer_figures(example("transformer"), "role:norm")) == [*HEATMAPS, "different"]


@pytest.mark.parametrize("measure", HEATMAPS)
def test_heatmap_shows_the_progress_of_each_layer_on_a_stated_scale(measure: str) -> None:
    trajectory = example("transformer")
    figure = layer_plot.progress(trajectory, measure)
    names, values = layers.progress(trajectory, measure)
    first = {"mds": 0, "mds_relative": 1}.get(measure, 2)  # before, it is undefined everywhere
    image = figure.axes[0].images[0]
    shown = np.asarray(image.get_array())
    np.testing.assert_array_equal(shown, (1 - values if "mds" in measure else values)[:, first:])
    assert names == list(trajectory.groups("depth"))
    assert row_names(figure.axes[0])[:3] == ["transformer.wte", "transformer.wpe", "transformer.h.0"]
    assert len(row_names(figure.axes[0])) == len(names) == 16
    low, high = image.get_clim()
    assert high == pytest.approx(shown.max())
    assert low == (pytest.approx(shown.min()) if measure == "update_angle" else 0)
    assert figure.axes[0].get_xlabel() == "epoch"
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    times = np.asarray(trajectory.epochs[first:])
    for label, place in zip(ticks, figure.axes[0].get_xticks(), strict=True):
        assert times[round(place)] == float(label)


def test_bar_is_labelled_in_the_values_of_the_measure() -> None:
    figure = draw("transformer", "mds")
    scale = figure.axes[0].images[0].norm
    bar = {
        float(text.get_text()[2:]): text.get_position()[1] for text in figure.axes[0].texts if text.get_text()[0] == "–"
    }
    assert max(bar) == 1
    for value, place in bar.items():
        assert float(scale(1 - value)) == pytest.approx(place, abs=1e-6)
    lowest = 1 - scale.vmax
    (label,) = (text for text in words(figure) if "range" in text)
    assert label.startswith("MDS\nrange 0.")
    assert float(label.split()[2]) == pytest.approx(lowest, abs=6e-3)


def test_unevenly_spaced_snapshots_are_said_to_be() -> None:
    assert draw("log-spaced", "mds").axes[0].get_xlabel() == "epoch (unevenly spaced)"


def test_more_layers_than_fit_are_merged_and_said_to_be() -> None:
    assert draw("deep", "mds").axes[0].images[0].get_array().shape == (64, 5)
    assert not any("neighbouring" in text for text in words(draw("deep", "mds")))
    for name in ("mds", "roles"):
        figure = draw("very deep", name)
        assert len(matrix(figure.axes[0])) == 77
        assert any(text.endswith("; a row is 2 neighbouring layers") for text in words(figure))
    trajectory = example("very deep")
    merged = np.asarray(draw("very deep", "mds").axes[0].images[0].get_array())
    first = {"transformer.wte", "transformer.wpe"}
    expected = trajectory.summary(lambda block: block.layer in first)["mds"]
    assert 1 - merged[0, -1] == pytest.approx(expected)


def test_undefined_cells_are_hatched_and_named() -> None:
    figure = layer_plot.progress(example("transformer"), "mds", "*.bias")  # undefined at θ_0
    assert UNDEFINED not in words(figure)  # the first snapshot is left out: nothing is defined there
    trajectory = record(transformer(3), 6, still=lambda name: "lm_head" in name)
    figure = layer_plot.progress(trajectory, "update_angle", "*")
    assert UNDEFINED in words(figure)
    assert figure.axes[0].patch.get_hatch()
    assert UNDEFINED not in words(draw("resnet", "mds"))
    hatched = draw("standing still", "update_angle")
    assert UNDEFINED in words(hatched)
    assert not any("range" in text for text in words(hatched))  # no colours, no bar


def test_roles_stand_beside_each_other_in_order_and_what_is_not_there_is_white() -> None:
    trajectory = record(transformer(3), 6, still=lambda name: name == "transformer.h.1.attn.q_proj.weight")
    figure = layer_plot.layers_by_roles(trajectory, "*")
    table = trajectory.table("depth x role", "*")
    roles = layers.present_roles(trajectory.blocks)
    for axes, measure in zip(figure.axes, ("mds", "direction_drift"), strict=True):
        assert [
            text.get_text() for text in axes.texts if text.get_rotation() == 90 and text.get_position()[1] < 0
        ] == roles
        shown = matrix(axes)
        for row, unit in enumerate(trajectory.groups("depth")):
            for column, role in enumerate(roles):
                value = table.get(f"{unit} {role}", {}).get(measure, float("nan"))
                cell = shown[row, column]
                if np.isnan(value):
                    assert np.ma.is_masked(cell)
                else:
                    assert (1 - cell if measure == "mds" else cell) == pytest.approx(value, rel=1e-9, abs=1e-12)
    still = figure.axes[1]
    assert still.patch.get_hatch()
    white = still.images[0].get_array()
    assert white[0, roles.index("q")] == 1  # an embedding has no q
    assert np.ma.is_masked(white[3, roles.index("q")])  # the one that doesn't move is hatched
    assert not figure.axes[0].patch.get_hatch()


def test_q_k_v_and_how_far_apart_they_are() -> None:
    trajectory = example("transformer")
    figure = draw("transformer", "heterogeneity")
    above, below = figure.axes
    found = layers.attention(trajectory)
    for line, role in zip(above.lines, "qkv", strict=True):
        assert line.get_label() == role
        np.testing.assert_array_equal(line.get_ydata(), [module[role] for module in found.values()])
    tops = [segment[1, 1] for segment in below.collections[0].get_segments()]
    assert tops == [module["heterogeneity"] for module in found.values()]
    assert [label.get_text() for label in below.get_xticklabels()] == [str(i) for i in range(12)]
    assert "attention module, transformer.h.*.attn" in words(figure)


def test_different_kinds_of_attention_are_lines_of_their_own() -> None:
    trajectory, figure = example("encoder-decoder"), draw("encoder-decoder", "heterogeneity")
    above, below = figure.axes
    found = layers.attention(trajectory)
    stacks = [
        [f"encoder.block.{i}.layer.0.SelfAttention" for i in range(6)],
        [f"decoder.block.{i}.layer.0.SelfAttention" for i in range(6)],
        [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(6)],
    ]
    for line, role in zip(above.lines, "qkv", strict=False):
        values = np.asarray(line.get_ydata())
        gaps = np.flatnonzero(np.isnan(values))
        assert len(gaps) == 2
        for stack, shown in zip(stacks, np.split(values, gaps), strict=True):
            np.testing.assert_array_equal(shown[~np.isnan(shown)], [found[module][role] for module in stack])
    tops = [segment[1, 1] for segment in below.collections[0].get_segments()]
    assert tops == [found[module]["heterogeneity"] for stack in stacks for module in stack]
    assert [label.get_text() for label in below.get_xticklabels()] == [str(i) for i in range(6)] * 3
    places = below.get_xticks()
    np.testing.assert_array_equal(places, np.flatnonzero(~np.isnan(np.asarray(above.lines[0].get_ydata()))))
    said = words(figure)
    for name in ("encoder.*.0.SelfAttention", "decoder.*.0.SelfAttention", "decoder.*.1.EncDecAttention"):
        assert said.count(name.replace("*.", "block.*.layer.")) == 1
    borders = [line.get_xdata()[0] for line in below.lines]  # type: ignore[index]
    assert borders == [6, 13]


def test_attention_of_many_kinds_is_named_one_by_one() -> None:
    figure = draw("many kinds of attention", "heterogeneity")
    ticks = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert ticks == [f"{'abcdefghijkl'[i]}_stage.attn{i}" for i in range(12)]


def test_small_maps_are_those_of_their_blocks_in_one_range() -> None:
    trajectory = example("transformer")
    names = layers.most_different(trajectory, 5)
    selections = [None, *(lambda block, name=name: block.name == name for name in names)]
    roles = layers.present_roles(trajectory.blocks)[:8]
    assert roles[:3] == ["q", "k", "v"]
    different = layer_plot.most_different(trajectory)
    for figure, selected in (
        (different, selections),
        (layer_plot.role_maps(trajectory), [f"role:{role}" for role in roles]),
    ):
        frame, timed = figure.axes
        *images, _ = frame.images
        maps = [measures.angle_map(trajectory.map(select)) for select in selected]
        largest = max(np.nanmax(angles) for angles in maps)
        said = [text.get_text() for text in frame.texts]
        assert f"angle (cosine)\nrange 0 to {largest:.3g}°" in said
        assert (UNDEFINED in said) == (figure is not different)  # biases start at zero
        hatched = [patch for patch in frame.patches if patch.get_hatch()]
        assert len(hatched) == sum(np.isnan(angles).any() for angles in maps) == (figure is not different)
        assert all(patch.get_zorder() < min(image.get_zorder() for image in images) for patch in hatched)
        similarities = [text.rpartition("= ")[2] for text in said if "\nMDS = " in text]
        for image, angles, select, value in zip(images, maps, selected, similarities, strict=True):
            np.testing.assert_allclose(image.get_array().filled(np.nan), angles, atol=2e-6)
            assert image.get_clim() == (0, pytest.approx(largest))
            assert float(value) == pytest.approx(trajectory.summary(select)["mds"], abs=1e-3)
        assert timed.get_xlabel() == timed.get_ylabel() == "epoch"
    text = words(layer_plot.role_maps(trajectory))
    assert [panel.partition("\n")[0] for panel in text if "\nMDS" in panel] == roles
    assert any(f"; not shown: {', '.join(layers.present_roles(trajectory.blocks)[8:])}" in line for line in text)
    text = words(different)
    shown = ["".join(panel.split("\n")[:-1]) for panel in text if "\nMDS" in panel]
    assert shown == ["everything counted", *names]


@pytest.mark.parametrize(
    ("case", "select", "said"),
    [
        ("transformer", None, "; biases and norms left out; one a role"),
        ("transformer", "layer:transformer.h.3", "; biases and norms left out"),
        ("transformer", "role:q", " parameters"),
        ("transformer", "role:norm", " parameters"),
        ("mlp", None, "; biases left out"),
    ],
)
def test_what_is_not_among_the_most_different_is_said(case: str, select: str | None, said: str) -> None:
    trajectory = example(case)
    counted = layer_plot.most_different(trajectory, select).texts[1].get_text()
    assert counted.endswith(trajectory.counted(select) + said.removeprefix(" parameters"))


def test_bright_is_where_the_direction_is_kept() -> None:
    trajectory = example("transformer")
    sums = np.ones((2, len(trajectory.blocks), 3, 4))
    for i, block in enumerate(trajectory.blocks):
        sums[0, i, 1], sums[1, i, 1] = (0.9, 0.9) if ".h.0." in block.name else (0.9, -0.9)
    trajectory = replace(trajectory, windows=Windows(sums, tuple(trajectory.steps[[5, 15]].tolist()), (4, 4)))
    figure = layer_plot.progress(trajectory, "oscillation_cosine")
    image = figure.axes[0].images[0]
    brightness = image.to_rgba(image.get_array(), norm=True)[..., :3].sum(axis=-1)
    names = row_names(figure.axes[0])
    kept, turned = (brightness[names.index(f"transformer.h.{i}"), -1] for i in (0, 1))
    assert kept == brightness.max() > 2 * turned == 2 * brightness.min()
    ticks = {
        float(text.get_text()[2:]): text.get_position()[1] for text in figure.axes[0].texts if "–" in text.get_text()
    }
    assert len(ticks) >= 3
    for value, place in ticks.items():
        assert place == pytest.approx((0.9 - value) / 1.8)  # the best below, as on every bar
    assert "oscillation cosine\nrange -0.9 to 0.9" in words(figure)
    angles = layer_plot.progress(trajectory, "update_angle").axes[0].images[0]
    shown = np.asarray(angles.get_array())
    brightness = angles.to_rgba(angles.get_array())[..., :3].sum(axis=-1)
    assert brightness.flat[shown.argmin()] == brightness.max() > brightness.flat[shown.argmax()] == brightness.min()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.h.0", "model.h.1", "model.wte"], ["h.0", "h.1", "wte"]),
        (["net.0", "net.2"], ["net.0", "net.2"]),
        (["net.0"], ["net.0"]),
        (["", "fc"], ["(root)", "fc"]),
        (["layer1.conv", "layer1.bn"], ["layer1.conv", "layer1.bn"]),
        (["a." + "b" * 20 + ".layers.3", "c.d"], ["a.bbbbbbbbb…bbb.layers.3", "c.d"]),
        (["x." + "1" * 30, "y"], ["x." + "1" * 30, "y"]),
    ],
)
def test_names_are_short_and_tell_apart(names: list[str], expected: list[str]) -> None:
    assert labels.shortened(names) == expected


def test_short_names_keep_their_numbers_and_stay_different() -> None:
    long = [
        f"{side}.block.{i}.layer.{j}.{kind}"
        for side in ("encoder", "decoder")
        for i in range(24)
        for j, kind in enumerate(("SelfAttention", "EncDecAttention"))
    ]
    for names in (
        long,
        [f"model.encoder.layers.{i}.blocks.{i // 2}.a_very_long_name.of_{i}" for i in range(50)],
        [f"a_module_with_a_long_name_{letter}_and_more_of_it.weight" for letter in "abcdefgh"],
        [f"{'x' * 30}{letter}{'y' * 30}" for letter in "ab"],
    ):
        for most in (10, 24):
            short = labels.shortened(names, most)
            assert len(set(short)) == len(names)
            for name, label in zip(names, short, strict=True):
                numbers = re.findall(r"\d+", name)
                assert re.findall(r"\d+", label) == numbers
    assert max(map(len, labels.shortened(long))) <= labels.LONGEST
    assert labels.cut("encoder.block.10.layer.0.SelfAttention", 24) == "enc…ck.10.layer.0.Se…ion"
    assert labels.cut("decoder.blocks.*.long_name_of_attention", 20) == "deco…ocks.*.lon…tion"


def test_modules_are_numbered_within_what_repeats() -> None:
    assert labels.stacks_of(["h.0.attn", "h.1.attn"]) == {"h.*.attn": {"0": 0, "1": 1}}
    assert labels.stacks_of(["a.0.b.0.attn1", "a.0.b.0.attn2", "a.1.b.0.attn1", "a.1.b.0.attn2"]) == {
        "a.*.b.0.attn1": {"0": 0, "1": 2},
        "a.*.b.0.attn2": {"0": 1, "1": 3},
    }
    assert labels.stacks_of(["s.0.b.0.attn", "s.0.b.1.attn", "s.1.b.0.attn"]) == {
        "s.*.b.*.attn": {"0.0": 0, "0.1": 1, "1.0": 2}
    }
    assert labels.stacks_of(["vit.layer_0.attn", "vit.layer_1.attn", "", "heads.0", "heads.1"]) == {
        "vit.layer_*.attn": {"0": 0, "1": 1},
        "": {"": 2},
        "heads.*": {"0": 3, "1": 4},
    }


def test_a_long_name_is_broken_before_it_is_cut() -> None:
    assert labels.in_lines("h.0.ln.bias", 20) == "h.0.ln.bias"
    assert labels.in_lines("transformer.h.0.attn.c_attn.bias", 20) == "transformer.h.0.\nattn.c_attn.bias"
    assert labels.in_lines("x" * 50, 20) == f"{'x' * 20}\n{'x' * 9}…{'x' * 10}"
    name = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v.weight"
    assert labels.in_lines(name, 25) == "up_blocks.1.attentions.2.\ntransformer_blocks.0.\nattn2.to_v.weight"


def test_predicates_are_named_as_elsewhere() -> None:
    def narrow(block: Block) -> bool:
        return "attn" in block.name

    trajectory = example("transformer")
    assert f"narrow: {trajectory.counted(narrow)}" in words(layer_plot.role_maps(trajectory, narrow))


def test_eleven_figures_of_gpt2s_size_take_less_than_a_second() -> None:
    trajectory = record(transformer(12), 100)
    drawn = [*layer_plot.layer_figures(trajectory).values()]
    drawn += [lambda f=f: f(trajectory, errors={}) for f in (plot.trajectory_map, plot.relative_map)]
    drawn += [lambda: plot.path(trajectory)]
    assert len(drawn) == 11

    def seconds() -> float:
        start = time.process_time()
        for figure in drawn:
            to_rgb(figure())
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 2  # 1 on a quiet machine
