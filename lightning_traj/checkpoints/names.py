"""Numbers in the names of checkpoints, and which of them counts epochs or steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_NUMBER = re.compile(
    r"(?P<date>(?<!\d)(?:19|20)\d\d(?P<sep>[-_.]?)(?:0[1-9]|1[0-2])(?P=sep)(?:0[1-9]|[12]\d|3[01])(?!\d)"
    r"(?:[T_ -](?:[01]\d|2[0-3])(?P<colon>[-:.])[0-5]\d(?P=colon)[0-5]\d(?!\d))?)"
    r"|(?<!\d)(?P<day>0[1-9]|[12]\d|3[01])(?P<dot>[-_.])(?P<month>0[1-9]|1[0-2])(?P=dot)(?P<year>(?:19|20)\d\d)(?!\d)"
    r"|(?P<scaled>\d+\.\d+)(?P<scale>[kmb])(?![a-z0-9])"
    r"|(?P<decimal>(?:\d+\.\d+(?:e[-+]?\d+)?)(?!\.?\d)|\d+e-\d+)"  # of a chain of dotted numbers, the last two
    r"|(?P<power>(?<!\d)\de\d+(?![a-z0-9]))"
    r"|(?P<count>\d+)(?P<unit>[kmb](?![a-z0-9]))?",
    re.IGNORECASE,
)
_HASH = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{7,40}(?![0-9A-Za-z])")
_BEFORE, _AFTER = re.compile(r"([a-z]+)[ =_.-]*$"), re.compile(r"^[ _-]?([a-z]+)")
_AROUND = {"epoch": {"epochs", "epoch"}, "step": {"steps", "step", "iters", "iterations"}}  # words behind a number
_WORDS = {
    "epoch": {"epoch", "epochs", "ep", "e", "eph"},
    "step": {"step", "steps", "iter", "iters", "iteration", "iterations", "it", "i", "update", "updates", "batch"},
}
# Words for measured values, which order nothing.
_MEASURED = {
    *("loss", "acc", "accuracy", "val", "valid", "top", "map", "ap", "iou", "miou", "auc", "psnr"),
    *("ssim", "fid", "ppl", "bleu", "rouge", "score", "metric", "err", "error", "mse", "mae", "dice", "reward", "cer"),
}
# Words for settings of a run. Checkpoints that differ in them are of several runs.
_SET = {"seed", "fold", "rank", "lr", "wd", "bs", "lambda", "alpha", "dropout"}
# Words that may number runs as well as checkpoints, and order files only if nothing else does.
_RUNS = {"run", "exp", "trial", "version", "v"}
_START = {"init", "initial", "initialized", "initialised", "initialization", "initialisation", "start", "untrained"}
_START |= {"random"}
_END = {"final", "last", "latest"}
_NO_START = _END | {"best", "warm", "finetune", "finetuned", "crop"}  # a warm start, a random crop


@dataclass(frozen=True)
class Number:
    """A number in a name.

    Attributes:
        value: Value of the number; a date is the integer that its digits make up.
        kind: ``"count"`` for an integer, ``"decimal"``, or ``"date"``.
        word: The word before it, in lower case, or the unit behind it; empty where there is none.
        text: The number as it is written.
    """

    value: int | float
    kind: Literal["count", "decimal", "date"]
    word: str
    text: str

    @property
    def unit(self) -> Literal["step", "epoch", "number"]:
        """Unit that its word tells: ``"step"``, ``"epoch"``, or ``"number"`` if it is not known."""
        return "step" if self.word in _WORDS["step"] else "epoch" if self.word in _WORDS["epoch"] else "number"


@dataclass(frozen=True)
class Counter:
    """The number that orders the files of one naming pattern.

    Attributes:
        values: Value in each name, or its rank if ``ranked``.
        unit: ``"step"``, ``"epoch"``, or ``"number"`` if the names tell neither.
        column: Place of the number among those of the name, counted from 0.
        example: The number as it is written in the first name.
        others: Whether other numbers that could count vary, too.
        ranked: Whether the names are ordered by a date, or by two numbers at once, so that values are only ranks.
    """

    values: tuple[int | float, ...]
    unit: Literal["step", "epoch", "number"]
    column: int
    example: str
    others: bool = False
    ranked: bool = False


def parse(name: str) -> tuple[tuple[str, ...], tuple[Number, ...]]:
    """Return the texts around the numbers of a name, one more than there are numbers, and the numbers.

    Hashes (``a3f9c2d``) are no numbers, and stand as ``§`` in the texts.

    Args:
        name: Name of a checkpoint, without its suffix.
    """
    name = _HASH.sub(lambda match: "§" if _is_hash(match[0]) else match[0], name)
    pieces, numbers, end = [], [], 0
    for match in _NUMBER.finditer(name):
        before, after = name[end : match.start()].lower(), name[match.end() :].lower()
        behind = _first(_AFTER, after)
        unit_behind = next((unit for unit, known in _AROUND.items() if behind in known), "")
        numbers.append(_number(match, _first(_BEFORE, before) or unit_behind))
        pieces.append(name[end : match.start()])
        end = match.end()
    return (*pieces, name[end:]), tuple(numbers)


def counter(rows: Sequence[Sequence[Number]], times: Sequence[float] = ()) -> Counter | None:
    """Choose the number that orders names of one pattern; None where none can.

    Integers that vary are candidates; measured ones (``loss``, ``acc``) and settings of a run (``seed``, ``lr``) are
    not. Of several, one that is called a step is taken before one that is called an epoch, that before others, and
    these before numbers of runs (``v2``); then one that differs in all names, one that grows with the time at which
    the files of each run were written, the one with the most values, and the most evenly spaced one. Of equals, it is
    the first if it differs in all names, and else the last, since the others then tell runs apart. Without a
    candidate, fractional epochs or dates order the names.

    Args:
        rows: Numbers of each name, as ``parse`` returns them; at least two names.
        times: Times at which the files were written.
    """
    columns = list(zip(*rows, strict=True))
    varying = [i for i, column in enumerate(columns) if len(set(_values(column))) > 1]
    times_of_day = [
        i for i in varying if i - 1 in varying and _is_date(columns[i - 1]) and all(map(_is_time, columns[i]))
    ]
    whole = [i for i in varying if _is_counter(columns[i]) and i not in times_of_day]
    if whole:
        runs = {i: [other_counts([row], i)[0] for row in rows] for i in whole}
        best = min(whole, key=lambda i: (_rank(columns[i]), *_quality(i, _values(columns[i]), runs[i], times)))
        values, first = _values(columns[best]), columns[best][0]
        epochs = [i for i in whole if columns[i][0].unit == "epoch"]
        within = [i for i in whole if epochs and _is_within(columns[i][0], i > epochs[0])]
        if within:  # steps may start anew in each epoch
            pairs = list(zip(_values(columns[epochs[0]]), _values(columns[within[0]]), strict=True))
            others = [i for i in whole if i not in (epochs[0], within[0])]
            told = list(zip(values, *(_values(columns[i]) for i in others), strict=True))
            if len(set(told)) < len(told):
                return Counter(_ranks(pairs), "number", best, first.text, others=True, ranked=True)
        return Counter(values, first.unit, best, first.text, others=len(whole) > 1)
    for i in varying:
        if columns[i][0].unit != "number" and not _is_date(columns[i]):
            return Counter(_values(columns[i]), columns[i][0].unit, i, columns[i][0].text)
    for i in varying:
        if _is_date(columns[i]):
            parts = [columns[i], *(columns[j] for j in times_of_day if j == i + 1)]
            ranks = _ranks(list(zip(*map(_values, parts), strict=True)))
            return Counter(ranks, "number", i, columns[i][0].text, ranked=True)
    return None


def settings(rows: Sequence[Sequence[Number]]) -> list[tuple[int | float, ...]]:
    """Return the numbers in each name that are set for a run (``seed``, ``lr``): names of one run share them."""
    return _without(rows, lambda i, number: number.word not in _SET)


def other_counts(rows: Sequence[Sequence[Number]], column: int) -> list[tuple[int | float, ...]]:
    """Return the integers in each name that may tell runs apart: all but one, steps, epochs and measured ones.

    Args:
        rows: Numbers of each name.
        column: Place of the number that orders the names.
    """
    return _without(
        rows,
        lambda i, number: i == column or number.kind != "count" or number.unit != "number" or number.word in _MEASURED,
    )


def _without(
    rows: Sequence[Sequence[Number]], is_left_out: Callable[[int, Number], bool]
) -> list[tuple[int | float, ...]]:
    return [tuple(number.value for i, number in enumerate(row) if not is_left_out(i, number)) for row in rows]


def counts_checkpoints(name: str) -> bool:
    """Return whether a name has an integer that may count steps or epochs (``epoch_1``), not only runs (``run_1``)."""
    return any(number.kind == "count" and number.word not in _MEASURED | _SET | _RUNS for number in parse(name)[1])


def is_start(name: str) -> bool:
    """Return whether a name says that nothing has been trained yet, such as ``epoch_init``."""
    words = _words(name)
    return not _START.isdisjoint(words) and _NO_START.isdisjoint(words)


def is_end(name: str) -> bool:
    """Return whether a name says that training was over, such as ``final``."""
    return not _END.isdisjoint(_words(name))


def is_negative(name: str) -> bool:
    """Return whether a name counts below zero, such as ``epoch_-1``."""
    return re.search(r"(?:epoch|step|iter(?:ation)?)s?[=_ ]-\d", name, re.IGNORECASE) is not None


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _number(match: re.Match[str], word: str) -> Number:
    text = match[0]
    if match["date"]:
        return Number(int("".join(filter(str.isdigit, text)).ljust(14, "0")), "date", word, text)
    if match["day"]:
        return Number(int(f"{match['year']}{match['month']}{match['day']}000000"), "date", word, text)
    if match["scaled"]:
        return Number(round(float(match["scaled"]) * _THOUSANDS[match["scale"].lower()]), "count", word, text)
    if match["decimal"]:
        return Number(float(text), "decimal", word, text)
    if match["power"]:
        return Number(float(text), "decimal", word, text)
    value = int(match["count"]) * _THOUSANDS[(match["unit"] or "").lower()]
    return Number(value, "count" if value < 2**63 else "date", word, text)  # longer numbers are times


def _is_hash(word: str) -> bool:
    """Return whether digits and letters alternate as they hardly do in a word with a number behind it."""
    return sum(one.isdigit() != other.isdigit() for one, other in pairwise(word)) > 1


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""


def _is_date(column: Sequence[Number]) -> bool:
    return all(number.kind == "date" for number in column)


def _is_time(number: Number) -> bool:
    """Return whether six digits are a time of day, such as 235959."""
    return re.fullmatch(r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d", number.text) is not None


def _is_counter(column: Sequence[Number]) -> bool:
    word = column[0].word
    kinds = {number.kind for number in column}
    return "count" in kinds and "decimal" not in kinds and word not in _MEASURED and word not in _SET


def _rank(column: Sequence[Number]) -> int:
    return 3 if column[0].word in _RUNS else ("step", "epoch", "number").index(column[0].unit)


def _is_within(number: Number, is_behind: bool) -> bool:
    """Return whether a number may count steps within an epoch: called so, or without a word behind the epoch."""
    return number.unit == "step" or (is_behind and not number.word)


def _quality(
    place: int, values: Sequence[int | float], runs: Sequence[tuple[int | float, ...]], times: Sequence[float]
) -> tuple[bool, bool, int, int, int]:
    """Sort first what differs in all names, grows with time in each run, has many values, and is evenly spaced."""
    distinct = sorted(set(values))
    repeats = len(distinct) < len(values)
    by_run: dict[Any, list[tuple[float, int | float]]] = {}
    for time, value, run in zip(times, values, runs, strict=True) if len(set(times)) > 1 else ():
        by_run.setdefault(run if repeats else (), []).append((time, value))
    grows = bool(by_run) and all(map(_is_growing, by_run.values()))
    gaps = {after - before for before, after in pairwise(distinct)}
    return repeats, not grows, -len(distinct), len(gaps), -place if repeats else place


def _is_growing(written: Sequence[tuple[float, int | float]]) -> bool:
    by_time = [value for _, value in sorted(written)]
    return all(before <= after for before, after in pairwise(by_time))


def _values(column: Sequence[Number]) -> tuple[int | float, ...]:
    return tuple(number.value for number in column)


def _ranks(keys: Sequence[tuple[int | float, ...]]) -> tuple[int, ...]:
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return tuple(order[key] for key in keys)
