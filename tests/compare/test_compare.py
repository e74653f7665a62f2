"""Runs side by side: found and named, matched block by block, their snapshots multiplied, and all of it written."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import reference
from event_files import events, hparams
from figures import assert_readable, words
from lightning_traj.checkpoints.hyperparameters import hyperparameters_beside, labelled
from lightning_traj.compare import figures as comparison_plot
from lightning_traj.compare.divergence import PARTED, joint_partings, partings
from lightning_traj.compare.joint import joint_gram
from lightning_traj.compare.page import comparison_report
from lightning_traj.compare.runs import Run, comparable, incomparability_reason, left_out, load_runs, names_of
from lightning_traj.compare.table import comparison_table
from lightning_traj.compare.words import at_a_glance
from lightning_traj.compare.write import is_made, write_comparison
from lightning_traj.plots.series import Timeline, series
from lightning_traj.report import summary as report
from pages import HOSTILE, assert_stands_alone

SHAPES = {"a.weight": (12, 10), "a.bias": (12,), "b.weight": (6, 12)}  # 120, 12 and 72 entries

# Imported by TensorBoard's plugins, and so by these tests in their functions, where this applies.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def saved(walk, recorded):
    """A factory of trajectories with rows, as they lie in the file when training has ended."""

    def make(snapshots=None, n=6, shapes=SHAPES, keep=True, **settings):
        recorder = recorded(walk(shapes, n) if snapshots is None else snapshots, **settings)
        trajectory = recorder.collect()[0]
        return trajectory.with_sketches(recorder.rows()) if keep else trajectory

    return make


@pytest.fixture(scope="module")
def branches(walk):
    """Snapshots of two runs that are the same for the first ``together`` of them, and then go their own ways."""

    def make(together, n=9, shapes=SHAPES, size=0.1):
        one, other = (walk(shapes, n, seed=seed, size=size) for seed in (1, 2))
        for t in range(n):
            for name in shapes:
                other[t][name] = (
                    one[t][name]
                    if t < together
                    else one[together - 1][name] + (other[t][name] - other[together - 1][name])
                )
        return one, other

    return make


def prefixed(snapshots, prefix):
    return [{prefix + name: tensor for name, tensor in snapshot.items()} for snapshot in snapshots]


def run(trajectory, name="run", **more):
    return Run(name, Path(f"{name}.safetensors"), trajectory, **more)


# Found on disk


def test_a_run_is_a_file_or_a_folder_that_holds_one(saved, tmp_path):
    for name in ("x/lr1/version_0", "x/lr2"):
        saved().save(tmp_path / name / "trajectory.safetensors")
    saved().save(tmp_path / "y/other.safetensors")
    (tmp_path / "x/lr2/snapshot.safetensors").write_bytes(b"no trajectory")
    (tmp_path / "x/lr1/version_0/hparams.yaml").write_text("lr: 1\n")
    runs = load_runs([tmp_path / "x/lr1", str(tmp_path / "x/lr2"), tmp_path / "y/other.safetensors"])
    assert [run.path.name for run in runs] == ["trajectory.safetensors", "trajectory.safetensors", "other.safetensors"]
    assert [run.hyperparameters for run in runs] == [{"lr": 1}, {}, {}]
    assert len({run.name for run in runs}) == 3


def test_bad_runs_are_named(saved, tmp_path):
    cut, whole = tmp_path / "cut.safetensors", saved()
    whole.with_sketches(whole.sketches[:, 1:]).save(cut)
    good, others = tmp_path / "good/trajectory.safetensors", tmp_path / "many"
    for path in (good, tmp_path / "z/version_0/t.safetensors", others / "a.safetensors", others / "b.safetensors"):
        saved().save(path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(good.read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for paths, error, said in (
        ([], ValueError, "at least two runs, and was given none"),
        ([good], ValueError, f"at least two runs, and was given {str(good)!r}"),
        ([good, good.parent], ValueError, f"{str(good)!r} and {str(good.parent)!r} are the same run"),
        ([good, tmp_path / "nowhere"], FileNotFoundError, "nowhere': no such file or folder"),
        ([good, tmp_path / "empty"], FileNotFoundError, "empty' holds no trajectory"),
        (
            [good, others],
            ValueError,
            f"holds 2 trajectories: {others / 'a.safetensors'}, {others / 'b.safetensors'}; name",
        ),
        ([good, cut], ValueError, f"path={str(cut)!r} holds rows of the shape (6, 203), not (6, 204)"),
        ([good, damaged], ValueError, f"path={str(damaged)!r} cannot be read as a trajectory"),
    ):
        with pytest.raises(error) as caught:
            load_runs(paths)
        assert said in str(caught.value)
    with pytest.raises(
        ValueError, match=r"rename=\{'nat\.': ''\}: no block's name begins with 'nat\.'; there are 'a\."
    ):
        load_runs([good, tmp_path / "z"], rename={"nat.": ""})
    with pytest.raises(ValueError, match=r"gives two blocks of good the name 'b\.weight'"):
        load_runs([good, tmp_path / "z"], rename={"a.": "b."})


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["l/lr1/version_0/trajectory", "l/lr2/version_0/trajectory"], ["lr1", "lr2"]),
        (["l/lr1/version_0/trajectory", "l/lr2/version_3/trajectory"], ["lr1", "lr2"]),
        (["l/x/version_0/trajectory", "l/x/version_3/trajectory"], ["version_0", "version_3"]),
        (["l/x/v/traj", "l/y/v/traj", "l/y/w/traj"], ["x/v", "y/v", "y/w"]),
        (["good/trajectory", "z/version_0/t"], ["good", "t"]),
        (["runs/a", "runs/b", "other/c"], ["a", "b", "c"]),
        (["l/trajectory", "l/b/trajectory"], ["l", "b"]),
    ],
)
def test_names_are_the_parts_that_tell_paths_apart(paths, names):
    assert names_of([Path("/home/me", f"{path}.safetensors") for path in paths]) == names


def test_names_tell_files_apart_that_differ_in_their_suffix():
    assert names_of([Path("/x/a"), Path("/x/a.safetensors")]) == ["/x/a", "/x/a.safetensors"]


def test_hyperparameters_are_flat_plain_and_built_of_nothing(tmp_path):
    file = tmp_path / "run/version_0/trajectory.safetensors"
    file.parent.mkdir(parents=True)
    assert hyperparameters_beside(file) == {}
    text = (
        "lr: 0.1\noptimizer:\n  betas: !!python/tuple [0.9, 0.99]\n  _class_path: x\nnone: null\n_instantiator: x\n"
        "act: !!python/name:torch.nn.ReLU ''\nrun: !!python/object/apply:os.system ['touch owned']\n"
    )
    (tmp_path / "run/hparams.yaml").write_text(text)
    found = hyperparameters_beside(file)
    assert found == {
        "lr": 0.1,
        "optimizer/betas": [0.9, 0.99],
        "none": None,
        "act": "torch.nn.ReLU",
        "run": ["touch owned"],
    }
    (tmp_path / "run/version_0/hparams.yaml").write_text("lr: 0.2\n")  # nearer
    assert hyperparameters_beside(file) == {"lr": 0.2}
    for broken in ("a: [1", "just words", "\x00"):
        (tmp_path / "run/version_0/hparams.yaml").write_text(broken)
        with pytest.raises(ValueError, match=r"version_0/hparams\.yaml (cannot be read as|holds no) hyperparameters"):
            hyperparameters_beside(file)


def test_hyperparameters_are_those_beside_a_run_or_of_its_checkpoints(saved, tmp_path):
    for i, held in enumerate(({"lr": 1}, {"lr": 2}, {})):
        trajectory = saved()
        settings = {**trajectory.settings, **({"hyperparameters": held} if held else {})}
        replace(trajectory, settings=settings).save(tmp_path / f"version_{i}/trajectory.safetensors")
    (tmp_path / "version_1/hparams.yaml").write_text("lr: 3\n")  # what was logged comes first
    runs = load_runs([tmp_path / f"version_{i}" for i in range(3)])
    assert [one.hyperparameters for one in runs] == [{"lr": 1}, {"lr": 3}, {}]
    assert [one.name for one in runs] == ["version_0 (lr=1)", "version_1 (lr=3)", "version_2"]


@pytest.mark.parametrize(
    ("all_of", "labels"),
    [
        ([{"learning_rate": 0.1, "n": 1}, {"learning_rate": 0.02, "n": 1}], ["a (lr=0.1)", "b (lr=0.02)"]),
        ([{"opt/lr": 1, "wd": 0}, {"opt/lr": 2, "wd": 1}], ["a (lr=1, wd=0)", "b (lr=2, wd=1)"]),
        ([{"a/lr": 1, "b/lr": 3}, {"a/lr": 2, "b/lr": 3}], ["a (lr=1)", "b (lr=2)"]),
        ([{"a/lr": 1, "b/lr": 3}, {"a/lr": 2, "b/lr": 4}], ["a (a/lr=1, b/lr=3)", "b (a/lr=2, b/lr=4)"]),
        ([{"l": 1, "x" * 30: 1, "m": 1}, {"l": 2, "x" * 30: 2, "m": 2}], ["a (l=1, m=1)", "b (l=2, m=2)"]),
        ([{"l": 1}, {"l": 1}], ["a", "b"]),
    ],
)
def test_labels_show_the_hyperparameters_that_differ(all_of, labels):
    assert labelled("ab", all_of) == labels


# Matched block by block


def test_a_prefix_that_all_parameters_share_makes_no_difference(saved, walk):
    snapshots = walk(SHAPES, 5)
    trajectories = [saved(prefixed(snapshots, prefix), sketch_dim=64) for prefix in ("", "net.", "model.inner.")]
    runs = [run(trajectory, str(i)) for i, trajectory in enumerate(trajectories)]
    assert [one.trajectory.settings["root"] for one in runs] == ["", "net.", "model.inner."]
    assert comparable(runs) == [[0, 1, 2]]
    joint = joint_gram(runs)
    np.testing.assert_allclose(joint.gram, np.tile(joint.gram[:5, :5], (3, 3)), rtol=1e-12)  # the same snapshots
    assert joint.same_start


def test_a_renaming_matches_blocks_that_are_kept_whole(saved, walk):
    snapshots = walk(SHAPES, 5)
    one = prefixed(snapshots, "net.")
    other = prefixed(snapshots, "model.")
    for snapshot in (*one, *other):
        snapshot["scale"] = snapshot[next(iter(snapshot))].flatten()[:1]  # beside the network: no common prefix
    whole, sketched = (
        [run(saved(some, sketch_dim=dim), name) for some, name in ((one, "one"), (other, "other"))] for dim in (512, 64)
    )
    assert "another model: one alone has 'net.a.weight'" in incomparability_reason(*whole)
    renamed, too_late = ([replace(some, rename={"net.": "model."}) for some in runs] for runs in (whole, sketched))
    assert incomparability_reason(*renamed) == ""
    joint = joint_gram(renamed)
    np.testing.assert_array_equal(joint.gram[:5, :5], joint.gram[5:, 5:])
    assert incomparability_reason(*too_late) == (
        "'model.a.weight' was sketched as 'net.a.weight' and as 'model.a.weight', with other random numbers"
    )


def test_why_runs_cannot_be_compared_is_said(saved, walk, tmp_path):
    base = run(saved(sketch_dim=64), "base")
    other = SHAPES | {"b.weight": (5, 12)}
    for trajectory, said in (
        (saved(walk(SHAPES, 4), sketch_dim=32), "sketched with sketch_dim=64 and 32"),
        (saved(sketch_dim=64, seed=1), "sketched with seed=0 and 1"),
        (
            saved(sketch_dim=64, keep=False),
            "the file of x holds no rows of its snapshots, which are saved when training",
        ),
        (
            saved(sketch_dim=64, snapshot="full", folder=tmp_path, keep=False),
            "x has full snapshots, which are not in its",
        ),
        (saved(sketch_dim=64, shapes=other), "another model: 'b.weight' has 72 parameters in base and 60 in x"),
        (saved(sketch_dim=64, shapes={**SHAPES, "c": (1,)}), "another model: x alone has 'c'"),
        (saved(sketch_dim=64, blocks="layer"), "blocks were made otherwise: blocks='tensor' and 'layer'"),
    ):
        assert said in incomparability_reason(base, run(trajectory, "x"))
        assert incomparability_reason(run(trajectory, "x"), base)
        with pytest.raises(ValueError, match="runs: base and x cannot be compared: "):
            joint_gram([base, run(trajectory, "x")])
    # Whole blocks have no random numbers.
    assert incomparability_reason(run(saved(sketch_dim=512)), run(saved(sketch_dim=600, seed=1))) == ""
    runs = [base, run(saved(sketch_dim=64), "again"), run(saved(sketch_dim=64, seed=1), "seed 1")]
    assert comparable(runs) == [[0, 1], [2]]
    assert left_out(runs) == [
        "base with seed 1: sketched with seed=0 and 1.",
        "again with seed 1: sketched with seed=0 and 1.",
    ]


# Multiplied


def test_joint_gram_of_whole_blocks_is_that_of_the_stacked_parameters(saved, branches, stacked):
    """Rows are kept in float32, of which 1e-6 is a few roundings; they are multiplied in float64."""
    snapshots = branches(together=1)
    joint = joint_gram([run(saved(some), name) for some, name in zip(snapshots, "ab", strict=True)])
    thetas = np.concatenate([stacked(some, list(SHAPES)) for some in snapshots])
    gram, relative = thetas @ thetas.T, reference.gram(list(thetas - thetas[0]))
    np.testing.assert_allclose(joint.gram, gram, rtol=0, atol=1e-6 * gram.max())
    np.testing.assert_allclose(joint.relative, relative, rtol=0, atol=1e-6 * relative.max())
    assert joint.owner.tolist() == [0] * 9 + [1] * 9
    assert joint.snapshot.tolist() == [*range(9), *range(9)]
    assert joint.same_start
    expected = reference.cosine_map(list(thetas - thetas[0]))
    np.testing.assert_allclose(joint.relative_map(), expected, rtol=0, atol=1e-5)
    assert np.isnan(joint.relative_map()[[0, 9]]).all()


def test_late_updates_are_not_lost_beside_large_parameters(saved, walk, stacked):
    """Displacements a millionth of θ: float32 rows of θ would hold nothing of them."""
    snapshots = [walk(SHAPES, 6, seed=seed, size=1e-6) for seed in (0, 0)]
    for snapshot in snapshots[1][3:]:
        snapshot["b.weight"] = snapshot["b.weight"].flip(0)
    joint = joint_gram([run(saved(some), name) for some, name in zip(snapshots, "ab", strict=True)])
    thetas = np.concatenate([stacked(some, list(SHAPES)) for some in snapshots])
    displacements = thetas - thetas[0]
    np.testing.assert_allclose(
        joint.relative, displacements @ displacements.T, rtol=1e-5, atol=1e-5 * joint.relative.max()
    )


def test_runs_from_different_parameters_have_no_common_origin(saved, stacked, walk):
    snapshots = [walk(SHAPES, 4, seed=seed) for seed in (0, 1)]
    joint = joint_gram([run(saved(some), name) for some, name in zip(snapshots, "ab", strict=True)])
    assert not joint.same_start
    thetas = np.concatenate([stacked(some, list(SHAPES)) for some in snapshots])
    np.testing.assert_allclose(joint.map(), reference.cosine_map(list(thetas)), rtol=0, atol=1e-6)
    assert partings(joint) == []
    for ask in (joint.relative_map, lambda: joint.angle(1, 5, relative=True)):
        with pytest.raises(ValueError, match="no common θ_0"):
            ask()
    angles = [joint.angle(i, j)[0] for i, j in ((0, 4), (3, 7), (2, 3), (6, 6))]
    expected = [reference.angle(thetas[i], thetas[j]) for i, j in ((0, 4), (3, 7), (2, 3), (6, 6))]
    assert angles == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ("aaab", ["0, 1 and 2 start from the same parameters; 3 from others", "0, 1 and 2: at the end the direct"]),
        ("abab", ["0 and 2 start from the same parameters; 1 and 3 from others", "1 and 3: at the end their direct"]),
        ("baac", ["1 and 2 start from the same parameters; 0 and 3 each from others"]),
        ("abcd", ["0, 1, 2 and 3 are of one model, but start from different parameters"]),
    ],
)
def test_runs_that_share_their_start_are_compared_whatever_others_start_from(saved, walk, stacked, starts, said):
    snapshots = []
    for seed, start in enumerate(starts):
        path, origin = walk(SHAPES, 4, seed=seed), walk(SHAPES, 1, seed=ord(start))[0]
        snapshots.append([{name: origin[name] + some[name] - path[0][name] for name in SHAPES} for some in path])
    runs = [run(saved(some), str(i)) for i, some in enumerate(snapshots)]
    whole, *parts = joints = [joint for joint, _ in joint_partings(runs)]
    thetas = [stacked(some) for some in snapshots]
    np.testing.assert_allclose(whole.map(), reference.cosine_map(list(np.concatenate(thetas))), rtol=0, atol=1e-6)
    assert whole.starts.tolist() == [sorted(set(starts), key=starts.index).index(start) for start in starts]
    alike = [[i for i in range(4) if starts[i] == start] for start in dict.fromkeys(starts) if starts.count(start) > 1]
    assert [[one.name for one in joint.runs] for joint in parts] == [list(map(str, some)) for some in alike]
    for joint, members in zip(parts, alike, strict=True):
        displacements = np.concatenate([thetas[i] - thetas[i][0] for i in members])
        np.testing.assert_allclose(joint.relative_map(), reference.cosine_map(list(displacements)), rtol=0, atol=1e-5)
        i, j = members[:2]
        expected = reference.angle(thetas[i][2] - thetas[i][0], thetas[j][3] - thetas[j][0])
        assert whole.angle(4 * i + 2, 4 * j + 3, relative=True)[0] == pytest.approx(expected, abs=1e-4)
        assert len(partings(joint)) == len(members) * (len(members) - 1) // 2
    assert len(partings(whole)) == sum(len(partings(joint)) for joint in parts)
    with pytest.raises(ValueError, match="no common θ_0"):
        whole.angle(1, 4 * next(i for i in range(4) if starts[i] != starts[0]) + 1, relative=True)
    figures = comparison_plot.comparison_figures(runs, joint_partings(runs))
    assert sum(name.startswith("joint_relative_map") for name in figures) == len(parts)
    assert sum(name.startswith("partings") for name in figures) == len(parts)
    assert_readable(figures["joint_path"](), on_others=("start",))
    text = " ".join(assert_stands_alone(comparison_report(runs, joint_partings(runs), {})).texts)
    assert all(words in text for words in said)
    assert "What is wrong with the runs" not in text
    assert len(joints) == 1 + len(alike)


@pytest.fixture
def shifted(walk):
    """Snapshots of runs whose starts are this far from that of the first one, and which go their own ways."""

    def make(distances, n=5, size=0.1):
        origin = walk(SHAPES, 1, dtype=torch.float64)[0]
        numel = sum(tensor.numel() for tensor in origin.values())
        runs = []
        for seed, distance in enumerate(distances):
            path = walk(SHAPES, n, seed=seed, dtype=torch.float64, size=size)
            step = distance / numel**0.5 if distance else 0.0
            runs.append([{name: origin[name] + step + some[name] - path[0][name] for name in SHAPES} for some in path])
        return runs

    return make


@pytest.mark.parametrize("sketch_dim", [512, 64])
def test_runs_whose_starts_are_near_are_each_seen_from_their_own(saved, stacked, shifted, sketch_dim):
    snapshots = shifted([0.0, 3.5e-4, 0.0])
    runs = [run(saved(some, sketch_dim=sketch_dim), name) for some, name in zip(snapshots, "abc", strict=True)]
    ((joint, found),) = joint_partings(runs)
    assert joint.starts.tolist() == [0, 1, 0]
    assert joint.origins.tolist() == [0, 0, 0]
    assert not joint.same_start
    thetas = [stacked(some) for some in snapshots]
    displacements = np.concatenate([theta - theta[0] for theta in thetas])
    tolerance = 1e-5 if sketch_dim == 512 else 0.5
    expected = reference.cosine_map(list(displacements))
    np.testing.assert_allclose(joint.relative_map(), expected, rtol=0, atol=tolerance)
    if sketch_dim == 64:  # not by chance: the rows are those of displacements from each start
        own = [run.trajectory.relative_map() for run in runs]
        for i, some in enumerate(own):
            at = joint.rows_of(i)[1:]
            np.testing.assert_allclose(joint.relative_map()[np.ix_(at, at)], some, atol=1e-6)
        return
    distance = np.linalg.norm(thetas[0][0] - thetas[1][0])
    assert distance == pytest.approx(3.5e-4, rel=1e-6)
    np.testing.assert_allclose(joint.start_distances, distance * np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), rtol=1e-2)
    assert joint.angle(2, 8, relative=True)[0] == pytest.approx(
        reference.angle(displacements[2], displacements[8]), abs=1e-3
    )
    assert [parting.same_until for parting in found] == [None, 0, None]
    for parting, (i, j) in zip(found, ((0, 1), (0, 2), (1, 2)), strict=True):
        angles = [reference.angle(*(thetas[r][t] - thetas[r][0] for r in (i, j))) for t in range(1, 5)]
        np.testing.assert_allclose(parting.angles, angles, atol=1e-3)
    assert str(found[0]).startswith("a and b: nearly the same start; the directions from θ_0 differ by more than 8.1°")


def test_near_starts_are_said_and_shown(saved, stacked, shifted):
    snapshots = shifted([0.0, 3.5e-4])
    runs = [run(saved(some, sketch_dim=512), name) for some, name in zip(snapshots, "ab", strict=True)]
    joints = joint_partings(runs)
    shorter = min(np.linalg.norm(stacked(some)[-1] - stacked(some)[0]) for some in snapshots)
    distances = f"0.00035 apart, {3.5e-4 / shorter:.2g} times the displacements"
    said = next(sentence for sentence in at_a_glance(runs, joints) if "are of one model" in sentence)
    assert said.startswith(f"a and b are of one model, but start from different parameters, {distances}; at the end")
    text = " ".join(assert_stands_alone(comparison_report(runs, joints, {})).texts)
    assert f"but start from different parameters, {distances}. That is little beside their displacements" in text
    assert "each run is seen from its own θ_0 in the relative map" in text
    assert "nowhere: starts differ" in text
    figures = comparison_plot.comparison_figures(runs, joints)
    assert {"joint_map", "joint_relative_map", "joint_path", "partings"} <= set(figures)
    for name in ("joint_relative_map", "partings"):
        assert "own θ₀" in " ".join(words(figures[name]()))
        assert_readable(figures[name]())
    assert_readable(figures["joint_path"](), on_others=("start",))


def test_how_far_apart_other_starts_are_is_said_too(saved, stacked, shifted):
    """Beside displacements of about 1, a tenth is not little."""
    snapshots = shifted([0.0, 0.1, 0.3])
    runs = [run(saved(some, sketch_dim=512), name) for some, name in zip(snapshots, "abc", strict=True)]
    ((joint, found),) = joint_partings(runs)
    assert joint.origins.tolist() == [0, 1, 2]
    assert found == []
    lengths = [np.linalg.norm(stacked(some)[-1] - stacked(some)[0]) for some in snapshots]
    distances = {(0, 1): 0.1, (0, 2): 0.3, (1, 2): 0.2}
    ratios = [distance / min(lengths[i], lengths[j]) for (i, j), distance in distances.items()]
    span = f"0.1 to 0.3 apart, {min(ratios):.2g} to {max(ratios):.2g} times the displacements"
    assert f"start from different parameters, {span}." in " ".join(at_a_glance(runs, [(joint, found)]))
    with pytest.raises(ValueError, match="no common θ_0"):
        joint.relative_map()
    figures = comparison_plot.comparison_figures(runs, [(joint, found)])
    assert not any(name.startswith(("joint_relative_map", "partings")) for name in figures)


def test_runs_of_one_snapshot_start_apart(saved, shifted):
    runs = [run(saved(some, sketch_dim=512), name) for some, name in zip(shifted([0.0, 0.1], n=1), "ab", strict=True)]
    ((joint, found),) = joint_partings(runs)
    assert found == []
    assert joint.origins.tolist() == [0, 1]
    assert "start from different parameters, 0.1 apart." in " ".join(at_a_glance(runs, [(joint, found)]))


def test_blocks_of_which_nothing_moved_are_not_counted_and_late_ones_are(saved, walk, stacked):
    runs, thetas = [], []
    for name, seed in (("a", 1), ("b", 2)):
        snapshots = walk(SHAPES, 5, seed=3)
        moved = walk({"b.weight": (6, 12)}, 5, seed=seed)
        for t, snapshot in enumerate(snapshots):
            snapshot["a.weight"], snapshot["a.bias"] = snapshots[0]["a.weight"], snapshots[0]["a.bias"]
            snapshot["b.weight"] = snapshots[0]["b.weight"] + moved[t]["b.weight"] - moved[0]["b.weight"]
            if t >= 2:  # the order of blocks differs from that of names
                snapshot["aa"] = moved[t]["b.weight"][0] - moved[2]["b.weight"][0] + 1
        first = {**snapshots[2], **snapshots[0]}  # what came late had its first value before
        runs.append(run(saved(snapshots), name))
        thetas.append(stacked([{**first, **snapshot} for snapshot in snapshots], ["b.weight", "aa"]))
    joint = joint_gram(runs)
    assert joint.same_start
    assert joint.counted == "2 of 4 blocks, 84 parameters: all that changed in a run"
    expected = np.concatenate(thetas)
    np.testing.assert_allclose(joint.gram, expected @ expected.T, rtol=0, atol=1e-6 * joint.gram.max())


def test_angles_between_sketched_runs_are_within_their_standard_errors(saved, branches, stacked):
    shapes = {"a": (40, 40), "b": (900,), "c": (20,)}
    snapshots = branches(together=1, n=3, shapes=shapes)
    displacements = [stacked(some)[1:] - stacked(some)[0] for some in snapshots]
    exact = [reference.angle(*pair) for pair in zip(*displacements, strict=True)]
    turned = reference.angle(*(stacked(some)[2] for some in snapshots))
    deviations, seen_from_origin = [], []
    for seed in range(40):
        joint = joint_gram(
            [run(saved(some, sketch_dim=64, seed=seed), name) for some, name in zip(snapshots, "ab", strict=True)]
        )
        (parting,) = partings(joint)
        assert (parting.errors > 0.5).all()
        deviations.append((parting.angles - exact) / parting.errors)
        # The joint map has the same angles.
        np.testing.assert_allclose(np.cos(np.radians(parting.angles)), joint.relative_map()[[1, 2], [4, 5]], atol=1e-9)
        assert joint.angle(2, 5, relative=True) == pytest.approx((parting.angles[1], parting.errors[1]))
        seen_from_origin.append((joint.angle(2, 5)[0] - turned) / joint.angle(2, 5)[1])
    deviations = np.array(deviations)
    assert abs(deviations.mean()) < 0.5  # of 40 seeds and two angles that go together
    assert 0.7 < np.sqrt((deviations**2).mean()) < 1.3
    assert (np.abs(deviations) < 1.96).mean() > 0.88
    assert 0.7 < np.sqrt(np.square(seen_from_origin).mean()) < 1.3


# Where they part


@pytest.mark.parametrize("together", [1, 4, 9])
@pytest.mark.parametrize("sketch_dim", [64, 512])
def test_runs_part_where_they_do(saved, branches, together, sketch_dim):
    joint = joint_gram(
        [run(saved(some, sketch_dim=sketch_dim), name) for some, name in zip(branches(together), "ab", strict=True)]
    )
    (parting,) = partings(joint)
    assert parting.steps.tolist() == list(range(1, 9))
    assert parting.same_until == together - 1
    assert not parting.angles[: together - 1].any()
    if together == 9:
        assert parting.parted is None
        assert str(parting) == "a and b: the same parameters up to step 8, the last that both have."
        return
    assert parting.parted >= together
    beyond = parting.angles - 2 * parting.errors > PARTED
    assert beyond[parting.steps == parting.parted]
    assert not beyond[parting.steps < parting.parted].any()
    assert f"a and b: the same parameters up to step {together - 1}; the directions" in str(parting)
    assert f"from step {parting.parted}" in str(parting)


def test_only_the_same_steps_are_compared(saved, walk):
    steps = {"a": [0, 2, 4, 6], "b": [0, 3, 6, 9], "c": [0, 1, 5, 7]}
    runs = []
    for name, its in steps.items():
        trajectory = saved(walk(SHAPES, 4))
        runs.append(run(replace(trajectory, steps=np.array(its)), name))
    found = {parting.names: parting for parting in partings(joint_gram(runs))}
    assert found["a", "b"].steps.tolist() == [6]
    assert str(found["a", "c"]) == "a and c: no snapshots at the same steps after the first."


# Ranked


def ranked(saved, walk, values, steps=None):
    """The sentence on mds of runs with these values and standard errors."""
    runs = []
    for i, (value, error) in enumerate(values):
        trajectory = saved(walk({"w": (4, 4)}, 3))
        one = run(replace(trajectory, steps=np.array(steps[i] if steps else [0, 1, 2])), "abcd"[i])
        one.__dict__.update(summary={**trajectory.summary(), "mds": value}, errors={"mds": error})
        runs.append(one)
    return [sentence for sentence in at_a_glance(runs, []) if "mds" in sentence or "ranked" in sentence]


def test_runs_are_ranked_where_their_errors_let_them_be_told_apart(saved, walk):
    def said(*values):
        (sentence,) = ranked(saved, walk, values)
        return sentence

    # The standard error of a difference of (0.03, 0.04) is 0.05.
    assert said((0.5, 0.03), (0.602, 0.04)) == (
        "mds: a turns most as seen from the origin (0.500 ± 0.030); b turns least (0.602 ± 0.040)."
    )
    assert said((0.5, 0.03), (0.598, 0.04)) == "mds: a at 0.500 ± 0.030 and b at 0.598 ± 0.040 are not told apart."
    assert said((0.2, 0.01), (0.6, 0.01), (0.61, 0.01)) == (
        "mds: a turns most as seen from the origin (0.200 ± 0.010); which of c at 0.610 ± 0.010 and b at 0.600 ± 0.010 "
        "turns least is not told apart."
    )
    assert said((0.2, 0.0), (0.3, 0.0)).endswith("b turns least (0.3).")
    assert said((0.2, 0.0), (0.2, 0.0)).endswith("are not told apart.")


def test_runs_of_other_steps_are_not_ranked_together(saved, walk):
    values = [(0.2, 0.0), (0.3, 0.0), (0.1, 0.0)]
    found = ranked(saved, walk, values, [[0, 1, 2], [0, 1, 2], [0, 1, 3]])
    assert found == [
        "mds (among a and b): a turns most as seen from the origin (0.2); b turns least (0.3).",
        "Runs whose snapshots are of different steps, or that count different blocks, are not ranked together.",
    ]


# Written


@pytest.fixture(scope="module")
def four(saved, branches):
    """Runs of which two go together for a while, one is of another seed of the sketch, and one of another model."""
    one, other = branches(4)
    named = {
        "a run with a long name, lr=0.1": (saved(one, sketch_dim=64), {"lr": 0.1, "optimizer": "SGD", "on": True}),
        "b": (saved(other, sketch_dim=64), {"lr": 1, "optimizer": "SGD", "on": True}),
        f"c{HOSTILE}".replace("/", "|"): (saved(sketch_dim=64, seed=7), {"optimizer": "SGD", "steps": [1, 2]}),
        "d": (saved(shapes={"w": (4, 4)}, n=1), {}),
    }
    alone = named["d"][0]
    named["d"] = replace(alone, settings={**alone.settings, "findings": ["x.ckpt is odd."]}), {}
    return [run(trajectory, name, hyperparameters=its) for name, (trajectory, its) in named.items()]


@pytest.fixture(scope="module")
def written(four, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "out"
    return folder, write_comparison(four, folder)


def test_everything_is_written_and_nothing_else(written):
    folder, files = written
    assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert files[0] == folder / "comparison.html"
    names = {path.name for path in files}
    assert names >= {"comparison.csv", "maps.png", "relative_maps.png", "joint_map.png", "joint_relative_map.png"}
    assert names >= {"joint_path.png", "partings.png", "series_mds.png", "series_direction_drift.png"}
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width > 500


def test_page_stands_alone_and_says_what_was_not_compared(written, four):
    source = (written[0] / "comparison.html").read_text(encoding="utf-8")
    found = assert_stands_alone(source)
    text = " ".join(found.texts)
    assert "sketched with seed=0 and 7" in text
    assert "another model: " in text
    assert "No hyperparameters are known of d. In all other runs: optimizer=SGD." in text
    (parting,) = partings(joint_gram(four[:2]))
    assert parting.at_the_end() in text
    assert "d: x.ckpt is odd." in text
    assert all(one.name in text for one in four)
    assert len(found.all("img")) == sum(path.suffix == ".png" for path in written[1])
    assert len(source) < 3_000_000


def test_table_and_csv_hold_the_same(written, four):
    with (written[0] / "comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [one.name for one in four]
    for row, one in zip(rows, four, strict=True):
        summary = one.trajectory.summary()
        assert {name: float(row[name] or "nan") for name in summary} == pytest.approx(
            summary, rel=0, abs=0, nan_ok=True
        )
        assert row["counted"] == one.trajectory.counted()
        assert float(row["mds_stderr"] or 0) == one.trajectory.standard_errors().get("mds", 0)
    assert [row["hparams/lr"] for row in rows] == ["0.1", "1", "", ""]
    console = Console(width=200, file=io.StringIO())
    console.print(comparison_table(four[:2]))
    shown = " ".join(console.file.getvalue().split())
    assert f"({report.saturated_at(four[0].trajectory)})" in shown
    for name in ("lr", "snapshots", "mds", "path_length", "direction_drift"):
        assert name in shown
    assert "In all runs: optimizer=SGD, on=True." in shown
    assert "Counted in all runs: all 3 blocks, 204 parameters." in shown


def test_tensorboard_shows_runs_in_one_table_and_one_chart(written, four):
    parameters, columns, values = hparams(written[0] / "tensorboard")
    assert set(parameters) == {"lr", "optimizer", "on", "steps"}
    assert "traj/mds" in columns
    latest = sorted(one.trajectory.summary()["mds"] for one in four)
    assert sorted(some["traj/mds"] for some in values) == pytest.approx(latest, rel=1e-6)
    found = events(written[0] / "tensorboard" / "b")
    series_of = four[1].trajectory.series()["mds"]
    assert [event.step for event in found.Scalars("traj/mds")] == four[1].trajectory.steps.tolist()
    assert [event.value for event in found.Scalars("traj/mds")] == pytest.approx(series_of, rel=1e-6)


def test_writing_again_leaves_nothing_of_before(four, tmp_path, monkeypatch):
    made = comparison_plot.comparison_figures(four, joint_partings(four))
    assert all(is_made(f"{name}.png") for name in [*made, "joint_relative_map_12", "series_mds"])
    monkeypatch.setattr("lightning_traj.compare.write.comparison_figures", lambda *_: {})
    mine = tmp_path / "series_mine.png"
    write_comparison(four, tmp_path)
    for path in (mine, tmp_path / "partings.png", tmp_path / "joint_relative_map_2.png"):
        path.write_bytes(b"")
    for runs in (four[:2], four[1:3]):
        files = write_comparison(runs, tmp_path)
        assert sorted([mine, *files]) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
        assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {one.name for one in runs}
    monkeypatch.setattr("lightning_traj.compare.write.write_csv", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_comparison(four, tmp_path)
    assert sorted([mine, *files]) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    (tmp_path / "logs/tensorboard/version_0").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="tensorboard/ of something else"):
        write_comparison(four, tmp_path / "logs")
    with pytest.raises(ValueError, match="at least two, and was given 1"):
        write_comparison(four[:1], tmp_path)
    with pytest.raises(ValueError, match="two have the same name"):
        write_comparison([four[1], four[1]], tmp_path)


# Drawn


@pytest.mark.parametrize("count", [2, 8])
def test_what_is_written_on_figures_can_be_read(saved, branches, count):
    snapshots = branches(3)
    runs = [
        run(saved(snapshots[i % 2]), f"seed{i}/lr=0.{i}/a-rather-long-name")
        if count == 8
        else run(saved(snapshots[i % 2]), f"r{i}")
        for i in range(count)
    ]
    joints = joint_partings(runs)
    figures = comparison_plot.comparison_figures(runs, joints)
    axes = figures["joint_path"]().axes[0]
    assert np.ptp(axes.get_xlim()) / axes.bbox.width == pytest.approx(np.ptp(axes.get_ylim()) / axes.bbox.height)
    for name in ("maps", "relative_maps", "joint_map", "joint_path", "layers_by_runs", "partings", "series_mds"):
        assert_readable(figures[name](), on_others=("start", "neither on nor back", "random walk"))


def test_maps_have_one_scale(saved, walk):
    runs = [run(saved(walk(SHAPES, 5, size=size)), str(size)) for size in (0.01, 0.3)]
    for relative in (False, True):
        figure = comparison_plot.maps(runs, relative=relative)
        scales = {image.get_clim() for axes in figure.axes for image in axes.images if image.get_clim()[1]}
        largest = max(
            float(np.nanmax(np.degrees(np.arccos(np.clip(some, -1, 1)))))
            for some in (one.trajectory.relative_map() if relative else one.trajectory.map() for one in runs)
        )
        assert len(scales) == 1
        assert scales.pop() == pytest.approx((0, largest))


def test_series_are_the_trajectories_and_saturation_is_marked(saved, walk):
    trajectories = {name: saved(walk(SHAPES, 8, seed=seed)) for name, seed in (("a", 1), ("b", 2))}
    figure = series({name: Timeline(some) for name, some in trajectories.items()}, "displacement")
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 8]
    marks = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    for line, mark, trajectory in zip(lines, marks, trajectories.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), trajectory.steps)  # the first epoch is not over
        np.testing.assert_array_equal(line.get_ydata(), trajectory.series()["displacement"])
        assert mark.get_xdata()[0] == trajectory.summary()["saturation"] * trajectory.steps[-1]
    assert {"a", "b", "step", "displacement"} <= set(words(figure))


def test_markers_that_coincide_are_all_seen(saved, walk):
    trajectory = saved(walk(SHAPES, 8, seed=1))
    others = {"b": saved(walk(SHAPES, 8, seed=1)), "c": saved(walk(SHAPES, 8, seed=5, size=0.3))}
    figure = series({name: Timeline(some) for name, some in {"a": trajectory, **others}.items()}, "displacement")
    marks = {line.get_marker(): line for line in figure.axes[0].lines if line.get_linestyle() == "None"}
    assert [marks[shape].get_markerfacecolor() == "none" for shape in "os^"] == [False, True, False]
    assert marks["s"].get_markersize() > marks["o"].get_markersize() == marks["^"].get_markersize()


def test_layers_are_called_as_in_the_report_of_each_run_where_all_are(saved, walk):
    shapes = {"net.0.w": (4, 4), "net.1.w": (4, 4)}
    alike = [run(saved(walk(shapes, 4, seed=seed)), str(seed)) for seed in (1, 2)]
    other = run(saved(prefixed(walk(shapes, 4), "model.")), "other")
    assert {"net.0", "net.1"} <= set(words(comparison_plot.layers_by_runs(alike)))
    assert {"net.0", "net.1"}.isdisjoint(words(comparison_plot.layers_by_runs([*alike, other])))
