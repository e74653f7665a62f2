"""The recipe that reproduces the paper's hallmarks: its rule, its runs, its tables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from math import inf, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recipes.hallmarks.claims
from lightning_traj import Trajectory
from recipes.hallmarks import report, sweep
from recipes.hallmarks.__main__ import hallmarks
from recipes.hallmarks.claims import CLAIMS, Base, saturation_of_walk, slope, undone_by_noise
from recipes.hallmarks.runs import Images, Text, name_of, plain
from recipes.hallmarks.sweep import Sweep
from recipes.hallmarks.verdict import Effect, Verdict, judge

RESULTS = Path(recipes.hallmarks.claims.__file__).parent / "results"
SUPPORTED, NOT_SUPPORTED, UNDECIDED = Verdict.SUPPORTED, Verdict.NOT_SUPPORTED, Verdict.UNDECIDED

# The rule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "above", "verdict"),
    [
        ((0.9, 1.0, 1.1), 0.0, SUPPORTED),
        ((0.9, 1.0, 1.1), 0.7, SUPPORTED),  # the interval is 1 ± 0.248
        ((0.9, 1.0, 1.1), 0.8, UNDECIDED),
        ((0.9, 1.0, 1.1), 1.2, UNDECIDED),
        ((0.9, 1.0, 1.1), 1.3, NOT_SUPPORTED),
        ((-0.9, -1.0, -1.1), 0.0, NOT_SUPPORTED),
        ((-1.0, 1.0), 0.0, UNDECIDED),
        ((5.0,), 0.0, UNDECIDED),  # one seed has no spread
        ((0.9, nan, 1.1), 0.0, UNDECIDED),
        ((0.9, inf, 1.1), 0.0, UNDECIDED),
        ((1.0, 1.0, 1.0), 0.0, SUPPORTED),  # no spread at all
        ((0.0, 0.0, 0.0), 0.0, NOT_SUPPORTED),
    ],
)
def test_rule(values: tuple[float, ...], above: float, verdict: Verdict) -> None:
    assert Effect("made up", values, above).verdict == verdict


def test_interval_is_that_of_students_t() -> None:
    effect = Effect("made up", (1.0, 2.0, 3.0, 4.0, 5.0))
    assert effect.mean == 3
    assert effect.margin == pytest.approx(2.7764451 * sqrt(2.5 / 5), rel=1e-7)  # from a printed table: t(0.975, 4)


def test_claims_without_truth_are_rarely_supported() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 5))
    verdicts = [Effect("nothing", tuple(draw)).verdict for draw in draws]
    for verdict in (SUPPORTED, NOT_SUPPORTED):  # 2.5 % each; the deviation of the count is 7
        assert 50 - 28 < verdicts.count(verdict) < 50 + 28


def test_a_claim_is_as_good_as_the_effects_that_decide_it() -> None:
    good, bad, unclear = Effect("", (1.0, 1.1)), Effect("", (-1.0, -1.1)), Effect("", (-1.0, 1.0))
    assert judge([good, replace(bad, decides=False), replace(unclear, decides=False)]) == SUPPORTED
    assert judge([good, unclear]) == UNDECIDED
    assert judge([good, unclear, bad]) == NOT_SUPPORTED
    assert judge([replace(good, decides=False)]) == UNDECIDED  # nothing decides


# The claims, on made-up runs --------------------------------------------------------------------------------


def made_up(omega: float = 0.9, **changed: Any) -> dict[str, Any]:
    """What is noted of a run of 60 epochs of 20 steps, and the momentum it was set to."""
    summary = {"mds": omega, "saturation": 0.2}
    return {
        "momentum": 0.9,
        "counted": {"all": "all", "weights": "some"},
        "epochs": list(range(61)),
        "steps": list(range(0, 1201, 20)),
        "summary": {"all": summary, "weights": dict(summary)},
        "series": {
            "turn": list(range(61)),
            "apex_angle": [nan, nan, *np.geomspace(10, 0.01, 59)],
            "update_length": [nan, *[1.0] * 60],
            "oscillation_cosine": [nan, *[0.5] * 60],
            "oscillation_reversals": [nan, *[0.0] * 60],
            "oscillation_step_length": [nan, *[0.1] * 60],
        },
        "late_cosine": 0.95,
        "final_direction": [*np.linspace(0.7, 1, 60)],
        "last_quarter": 6.0,
        "attention": layers(0.01, 0.05, 0.06, 0.02),
        "val/accuracy": [0.5] * 59 + [0.97],
        "val/loss": [2.0, 1.0],
    } | changed


def layers(*heterogeneities: float) -> dict[str, dict[str, float]]:
    return {f"h.{i}": {"q": 0.9, "k": 0.9, "v": 0.9, "heterogeneity": value} for i, value in enumerate(heterogeneities)}


def runs_of(number: str, *runs: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The same made-up runs for all variants, three seeds, slightly different."""
    variants = CLAIMS[number].variants(Base())
    given = dict(zip(variants, runs if len(runs) > 1 else runs * len(variants), strict=True))
    return {
        variant: [
            run
            | {"summary": {name: values | {"mds": values["mds"] + i * 1e-5} for name, values in run["summary"].items()}}
            for i in range(3)
        ]
        for variant, run in given.items()
    }


@pytest.mark.parametrize(
    ("omegas", "verdict"),
    [
        ((0.9997, 0.9927, 0.9996, 0.8979, 0.99, 0.98), SUPPORTED),
        ((0.9997, 0.8979, 0.9996, 0.9927, 0.99, 0.98), NOT_SUPPORTED),  # momentum alone explores more
        ((0.9, 0.99, 0.99, 0.95, 0.99, 0.98), NOT_SUPPORTED),  # and so does neither
    ],
)
def test_h1(omegas: tuple[float, ...], verdict: Verdict) -> None:
    runs = runs_of("H1", *map(made_up, omegas))
    effects = CLAIMS["H1"].effects(runs, Base())
    assert judge(effects) == verdict
    assert effects[0].mean == pytest.approx(min(omegas[:3]) - omegas[3], abs=1e-12)
    assert effects[2].mean == pytest.approx((omegas[0] - omegas[3]) - (omegas[0] - omegas[1]) - (omegas[0] - omegas[2]))


def test_slope_is_that_of_the_line() -> None:
    levels = {"a": 1.0, "b": 2.0, "c": 4.0}
    runs = {name: [{"y": 3 - 2 * x + 5 * seed} for seed in range(2)] for name, x in levels.items()}
    assert slope(runs, levels, lambda values: values["y"]) == pytest.approx((-2, -2))


def test_h2() -> None:
    batches = (0.91, 0.99, 0.9965)
    falling = CLAIMS["H2"].effects(runs_of("H2", *map(made_up, (0.9996, 0.999, 0.9929, 0.9311, *batches))), Base())
    assert judge(falling) == SUPPORTED
    assert [effect.name for effect in falling if effect.decides] == ["fall of ω for a tenfold learning rate (slope)"]
    assert falling[-1].mean == pytest.approx(batches[2] - batches[1])
    rising = CLAIMS["H2"].effects(runs_of("H2", *map(made_up, (0.9, 0.92, 0.94, 0.99, *batches))), Base())
    assert judge(rising) == NOT_SUPPORTED


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, SUPPORTED),
        ({"late_cosine": 0.8}, NOT_SUPPORTED),
        ({"summary": {"all": {"mds": 0.9, "saturation": 0.7}, "weights": {"mds": 0.9}}}, NOT_SUPPORTED),
    ],
)
def test_h3(changed: dict[str, Any], verdict: Verdict) -> None:
    for settled in (True, False):  # the run without drops decides too
        runs = runs_of("H3", made_up(**changed if settled else {}), made_up(**{} if settled else changed))
        assert judge(CLAIMS["H3"].effects(runs, Base())) == verdict


def test_saturation_of_a_random_walk() -> None:
    even = made_up()
    assert saturation_of_walk(even) == pytest.approx(np.ceil(0.81 * 60) / 60)  # cos(d_t, d_T) = √(t / T)
    walk = np.random.default_rng(0).normal(size=(60, 100_000)).cumsum(axis=0)
    cosines = walk @ walk[-1] / np.linalg.norm(walk, axis=1) / np.linalg.norm(walk[-1])
    assert saturation_of_walk(even) == pytest.approx((1 + np.argmax(cosines >= 0.9)) / 60, abs=1 / 60)


def test_h4() -> None:
    effects = CLAIMS["H4"].effects(runs_of("H4", made_up()), Base())
    assert judge(effects) == SUPPORTED
    assert effects[0].mean == pytest.approx(1 - 6 / (15 * 20 * 0.1))  # the last 15 epochs
    assert effects[1].mean == pytest.approx(np.linspace(0.7, 1, 60)[44])  # after epoch 45
    straight = CLAIMS["H4"].effects(runs_of("H4", made_up(last_quarter=29.0)), Base())
    assert judge(straight) == NOT_SUPPORTED
    turning = CLAIMS["H4"].effects(runs_of("H4", made_up(final_direction=[0.5] * 60)), Base())
    assert judge(turning) == NOT_SUPPORTED


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_noise_undoes_as_much_as_it_is_said_to(momentum: float) -> None:
    noise = np.random.default_rng(0).normal(size=(500, 20_000))  # the first 200 steps forget how it began
    step, steps = np.zeros(20_000), []
    for gradient in noise:
        step = momentum * step + gradient
        steps.append(step)
    late = np.array(steps[200:])
    undone = 1 - np.linalg.norm(late.sum(axis=0)) / np.linalg.norm(late, axis=1).sum()
    assert undone_by_noise(made_up(momentum=momentum)) == pytest.approx(undone, abs=0.01)  # 15 epochs of 20 steps


def test_h5() -> None:
    growing = CLAIMS["H5"].effects(runs_of("H5", *map(made_up, (0.906, 0.938, 0.949, 0.951))), Base())
    assert judge(growing) == SUPPORTED
    assert growing[0].mean == pytest.approx((-1.5 * 0.906 - 0.5 * 0.938 + 0.5 * 0.949 + 1.5 * 0.951) / 5)
    shrinking = CLAIMS["H5"].effects(runs_of("H5", *map(made_up, (0.95, 0.94, 0.93, 0.9))), Base())
    assert judge(shrinking) == NOT_SUPPORTED


def test_h6() -> None:
    fading = [made_up(attention=layers(0.01, 0.06 / i, 0.08 / i, 0.03)) for i in range(1, 5)]
    effects = CLAIMS["H6"].effects(runs_of("H6", *fading), Base())
    assert judge(effects) == SUPPORTED
    assert effects[0].mean == pytest.approx(np.mean([0.07 / i for i in range(1, 5)]) - 0.02)
    assert judge(CLAIMS["H6"].effects(runs_of("H6", *fading[::-1]), Base())) == NOT_SUPPORTED


def trained(accuracy: float) -> dict[str, Any]:
    return made_up(**{"val/accuracy": [0.1] * 9 + [0.9] * 50 + [accuracy]})


def test_h7_asks_from_when_on_it_was_redundant() -> None:
    accuracies = (0.99, 0.5, 0.6, 0.7, 0.985, 0.986, 0.99)  # everything; from epoch 0, 2, 4, 10, 20 and 30 of 40 on
    effects = CLAIMS["H7"].effects(runs_of("H7", *map(trained, accuracies)), Base())  # saturated at 0.2
    assert judge(effects) == SUPPORTED
    assert effects[0].mean == pytest.approx(-0.5)
    assert effects[1].mean == pytest.approx(98.5 - 90)  # after 10 epochs of training everything
    assert [effect.verdict for effect in effects[2:5]] == [NOT_SUPPORTED] * 3
    accuracies = (0.99, 0.5, 0.6, 0.7, 0.97, 0.986, 0.99)
    assert judge(CLAIMS["H7"].effects(runs_of("H7", *map(trained, accuracies)), Base())) == NOT_SUPPORTED


def test_what_is_undefined_is_undecided_and_can_be_shown() -> None:
    late = {"summary": {"all": {"mds": nan, "saturation": 0.9}, "weights": {"mds": 0.9}}}
    effects = CLAIMS["H7"].effects(runs_of("H7", made_up(**late)), Base())  # frozen too early, each time
    assert judge(effects) == UNDECIDED
    assert "| nan | > -1 |" in report.effects_table(effects)
    assert "nan" in report.runs_table(CLAIMS["H1"], runs_of("H1", made_up(**late)))


def test_a_slope_takes_two_levels() -> None:
    with pytest.raises(ValueError, match="width 64: a slope takes two levels at least"):
        CLAIMS["H5"].effects({"width 64": [made_up()] * 2}, Base(widths=(64,)))


# The runs ---------------------------------------------------------------------------------------------------

SMALL = Images(epochs=3, depth=8, width=4, train_images=64, batch_size=32)
SHORT = Text(depth=3, width=8, heads=2, steps=4, context=16, batch_size=4, snapshots=2, warmup_steps=1, val_batches=1)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made one after the other where the test is: starting a process takes longer than they do."""

    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...

        def shutdown(self, **_: object) -> None: ...

        def submit(self, function, *given):
            future: Future = Future()
            try:
                future.set_result(function(*given))
            except Exception as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(sweep, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(sweep, "PICTURED", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of runs that several claims ask for."""
    return tmp_path_factory.mktemp("hallmarks")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("number", [*CLAIMS, "maps"])
def test_one_command_a_claim(number: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"images": SMALL, "text": SHORT, "widths": (8, 16), "learning_rates": (0.01, 0.1), "batch_sizes": (16, 32)}
    hallmarks(claim=number, **given, seeds=1, folder=folder, out=tmp_path)
    assert (tmp_path / f"{number}.png").stat().st_size > 10_000
    if number != "maps":
        page = (tmp_path / f"{number}.md").read_text()
        assert page.startswith(f"# {number}: undecided")  # by one seed
        assert CLAIMS[number].text in page
        assert "Counted: " in page
    before = (folder / "runs.jsonl").read_bytes()
    capsys.readouterr()
    hallmarks(claim=number, **given, seeds=1, folder=folder, out=tmp_path)
    assert "missing" not in capsys.readouterr().out
    assert (folder / "runs.jsonl").read_bytes() == before


def test_runs_are_made_in_processes_and_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Sweep(tmp_path, workers=1)
    made = runs.complete([SMALL], seeds=[0, 1])
    assert [line["seed"] for line in made[SMALL]] == [0, 1]
    assert made[SMALL][0]["setting"] == plain(SMALL)
    assert len(Trajectory.load(runs.trajectory(SMALL, 1))) == 4
    finished = tmp_path / "runs.jsonl"
    first, second = finished.read_text().splitlines(keepends=True)
    finished.write_text(first + second[:1000])  # as a kill leaves it
    capsys.readouterr()
    again = runs.complete([SMALL], seeds=[0, 1])
    assert "a line was cut short" in capsys.readouterr().out
    assert repr(again[SMALL][1]["values"]) == repr(made[SMALL][1]["values"])  # the same seed, the same run
    assert repr(runs.complete([SMALL], seeds=[1, 0])[SMALL]) == repr(again[SMALL][::-1])
    assert len(Sweep(tmp_path).finished()) == 2


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    wrong = replace(SMALL, learning_rate=1e30)  # diverges at once
    said = r"1 of 2 runs failed:\nimages/.*learning_rate=1e\+30.*1 of 4 snapshots were recorded"
    with pytest.raises(RuntimeError, match=said):
        Sweep(tmp_path).complete([wrong, SMALL], seeds=[0])
    assert [line["setting"] for line in Sweep(tmp_path).finished()] == [plain(SMALL)]


def test_names_of_runs_tell_what_differs() -> None:
    assert name_of(Images(momentum=0.0, drops=())).startswith("images/momentum=0.0,drops=(),")
    settings = {setting for claim in CLAIMS.values() for setting in claim.variants(Base()).values()}
    settings |= {Text(data_path="a/text.txt"), Text(data_path="b/text.txt")}
    assert len({name_of(setting) for setting in settings}) == len(settings)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"seeds": 0}, ValueError, "seeds=0: pass at least 1"),
        ({"images": Images(source="cifar10")}, ValueError, "data_path=None: source=cifar10 reads your files"),
        ({"images": Images(source="idx", data_path="nowhere")}, FileNotFoundError, "nowhere"),
        ({"images": Images(depth=9)}, ValueError, "depth=9"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(given, error, words, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        hallmarks(claim="H1", **given, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", ["resnet", "resnet50", "vgg16"])
def test_other_networks_are_a_flag_away(network: str) -> None:
    model, data = Images(network=network).build()
    assert data.classes == 10
    assert sum(p.numel() for p in model.parameters()) > 250_000


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.hallmarks", "--claim=H1", f"--folder={tmp_path}", "--workers=1"]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if "are missing" in text:
                break
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("images/*/seed-*-unfinished-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60)
    assert not (tmp_path / "runs.jsonl").exists()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a run outlived the command")


def test_a_trajectory_that_was_made_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Name another folder"):
        Sweep(tmp_path).trajectory(SMALL, 0)


# What was found ---------------------------------------------------------------------------------------------


def test_pages_follow_from_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", None)  # nothing is to be trained
    runs = Sweep(RESULTS)
    seeds = sorted({line["seed"] for line in runs.finished()})
    found = {}
    for number, claim in CLAIMS.items():
        variants = claim.variants(Base())
        made = runs.complete(variants.values(), seeds)
        lines = {variant: made[setting] for variant, setting in variants.items()}
        effects = claim.effects(report.values_of(lines), Base())
        assert (RESULTS / f"{number}.md").read_text() == report.page(number, claim, effects, lines)
        assert (RESULTS / f"{number}.png").is_file()
        found[number] = claim, effects
    assert (RESULTS / "summary.md").read_text() == report.summary(found) + "\n"
    assert report.summary(found).replace("](H", "](results/H") in (RESULTS.parent / "README.md").read_text()
