"""The recipe that reproduces the paper's hallmarks: its rule, its runs, its tables."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace
from math import inf, nan, sqrt
from pathlib import Path

import numpy as np
import pytest

import recipes.hallmarks.claims
from lightning_traj import Trajectory
from recipes.hallmarks import report, sweep
from recipes.hallmarks.__main__ import hallmarks
from recipes.hallmarks.claims import CLAIMS, Base, slope
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


def made_up(omega: float = 0.9, noise: float = 0.0, **changed: object) -> dict[str, object]:
    """What is noted of a run of 60 epochs."""
    epochs = list(range(61))
    linearity = [None, *np.linspace(0.8, 0.2, 60).tolist()]
    turns = [None, None, *np.geomspace(10, 0.01, 59).tolist()]
    flat = [None, *[0.5] * 60]
    summary = {"mds": omega + noise, "saturation": 0.2}
    layers = {
        f"h.{i}": {"q": 0.9, "k": 0.9, "v": 0.9, "heterogeneity": h} for i, h in enumerate((0.01, 0.05, 0.06, 0.02))
    }
    return {
        "counted": {"all": "all", "weights": "some"},
        "epochs": epochs,
        "steps": epochs,
        "summary": {"all": summary, "weights": dict(summary)},
        "series": {
            "turn": epochs,
            "apex_angle": turns,
            "oscillation_linearity": linearity,
            "oscillation_cosine": flat,
        },
        "late_cosine": 0.95,
        "final_direction": [1.0] * 60,
        "attention": layers,
        "val/accuracy": [0.5, 0.97 + noise],
        "val/loss": [2.0, 1.0],
    } | changed


def runs_of(number: str, *runs: dict[str, object]) -> dict[str, list[dict[str, object]]]:
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
def test_h3(changed: dict[str, object], verdict: Verdict) -> None:
    assert judge(CLAIMS["H3"].effects(runs_of("H3", made_up(**changed)), Base())) == verdict


def test_h4() -> None:
    effects = CLAIMS["H4"].effects(runs_of("H4", made_up()), Base())
    assert judge(effects) == SUPPORTED
    late = np.linspace(0.8, 0.2, 60)[45:]  # epochs 46 to 60
    assert effects[0].mean == pytest.approx(1 - late.mean())
    turns = np.geomspace(10, 0.01, 59)  # epochs 2 to 60
    assert effects[1].mean == pytest.approx(turns[:14].mean() / turns[44:].mean())
    straight = [None, *[0.9] * 60]
    series = made_up()["series"] | {"oscillation_linearity": straight}
    assert judge(CLAIMS["H4"].effects(runs_of("H4", made_up(series=series)), Base())) == NOT_SUPPORTED


def test_h5() -> None:
    growing = CLAIMS["H5"].effects(runs_of("H5", *map(made_up, (0.906, 0.938, 0.949, 0.951))), Base())
    assert judge(growing) == SUPPORTED
    assert growing[0].mean == pytest.approx((-1.5 * 0.906 - 0.5 * 0.938 + 0.5 * 0.949 + 1.5 * 0.951) / 5)
    shrinking = CLAIMS["H5"].effects(runs_of("H5", *map(made_up, (0.95, 0.94, 0.93, 0.9))), Base())
    assert judge(shrinking) == NOT_SUPPORTED


def layers(*heterogeneities: float) -> dict[str, dict[str, float]]:
    return {f"h.{i}": {"heterogeneity": value} for i, value in enumerate(heterogeneities)}


def test_h6() -> None:
    fading = [made_up(attention=layers(0.01, 0.06 / i, 0.08 / i, 0.03)) for i in range(1, 5)]
    effects = CLAIMS["H6"].effects(runs_of("H6", *fading), Base())
    assert judge(effects) == SUPPORTED
    assert effects[0].mean == pytest.approx(np.mean([0.07 / i for i in range(1, 5)]) - 0.02)
    assert judge(CLAIMS["H6"].effects(runs_of("H6", *fading[::-1]), Base())) == NOT_SUPPORTED


def test_h7_asks_from_when_on_it_was_redundant() -> None:
    def trained(accuracy: float) -> dict[str, object]:
        return made_up(**{"val/accuracy": [0.1, accuracy]})

    accuracies = (0.99, 0.5, 0.6, 0.7, 0.985, 0.986, 0.99)  # everything; from 0, 0.05, 0.1, 0.25, 0.5 and 0.75 on
    effects = CLAIMS["H7"].effects(runs_of("H7", *map(trained, accuracies)), Base())  # saturated at 0.2
    assert judge(effects) == SUPPORTED
    assert effects[0].mean == pytest.approx(-0.5)
    assert [effect.verdict for effect in effects[1:4]] == [NOT_SUPPORTED] * 3
    accuracies = (0.99, 0.5, 0.6, 0.7, 0.97, 0.986, 0.99)
    assert judge(CLAIMS["H7"].effects(runs_of("H7", *map(trained, accuracies)), Base())) == NOT_SUPPORTED


# The runs ---------------------------------------------------------------------------------------------------

SMALL = Images(epochs=3, depth=8, width=4, train_images=64, batch_size=32)
SHORT = Text(depth=3, width=8, heads=2, steps=4, context=16, batch_size=4, snapshots=2, warmup_steps=1, val_batches=1)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made one after the other where the test is: starting a process takes longer than they do."""

    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...

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
    for key in ("summary", "series", "val/accuracy"):
        assert again[SMALL][1][key] == made[SMALL][1][key]  # the same seed, the same run
    assert runs.complete([SMALL], seeds=[1, 0])[SMALL] == again[SMALL][::-1]
    assert len(Sweep(tmp_path).finished()) == 2


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    wrong = replace(SMALL, depth=9)
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed:\nimages/.*depth=9.*, seed 0: ValueError: depth=9"):
        Sweep(tmp_path).complete([wrong, SMALL], seeds=[0])
    assert [line["setting"] for line in Sweep(tmp_path).finished()] == [plain(SMALL)]


def test_names_of_runs_tell_what_differs() -> None:
    assert name_of(Images()) == "images/as it is"
    assert name_of(Images(momentum=0.0, drops=())) == "images/momentum=0.0,drops=()"
    settings = {setting for claim in CLAIMS.values() for setting in claim.variants(Base()).values()}
    assert len({name_of(setting) for setting in settings}) == len(settings)


def test_a_trajectory_that_was_made_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Name another folder"):
        Sweep(tmp_path).trajectory(SMALL, 0)


# What was found ---------------------------------------------------------------------------------------------


def test_pages_follow_from_the_lines() -> None:
    known = {(json.dumps(line["setting"]), line["seed"]): line for line in Sweep(RESULTS).finished()}
    found = {}
    for number, claim in CLAIMS.items():
        lines = {
            variant: [known[json.dumps(plain(setting)), seed] for seed in range(5)]
            for variant, setting in claim.variants(Base()).items()
        }
        assert (RESULTS / f"{number}.md").read_text() == report.page(number, claim, Base(), lines)
        assert (RESULTS / f"{number}.png").is_file()
        found[number] = claim, claim.effects(lines, Base())
    assert (RESULTS / "summary.md").read_text() == report.summary(found) + "\n"
    assert report.summary(found).replace("](H", "](results/H") in (RESULTS.parent / "README.md").read_text()
