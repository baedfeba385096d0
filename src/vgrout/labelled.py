"""Rollouts with ground-truth labels, read from files: for upper bounds and for measurements, never for an update."""

from __future__ import annotations

import gzip
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vgrout.directions.pairs import Pair
from vgrout.env.modes import MODES
from vgrout.env.prompts import turns_of
from vgrout.env.rows import json_object
from vgrout.run.disk import disk_errors
from vgrout.run.logs import read_frames
from vgrout.types import Problem, UserError, View

MAX_ORACLE_PAIRS = 48
_FIELDS: dict[str, type] = {
    **{"problem_id": str, "mode": str, "marker": str, "response": str},
    **{"exploited": bool, "gt_correct": bool},
}
_OPTIONAL: dict[str, type] = {"step": int, "view": str, "finished": bool, "infra": bool}


@dataclass(frozen=True)
class Labelled:
    """One rollout with its label."""

    step: int
    problem_id: str
    mode: str
    view: str
    messages: tuple[tuple[str, str], ...]
    response: str
    finished: bool
    exploited: bool
    gt_correct: bool


def read_labelled(path: Path, problems: Iterable[Problem]) -> list[Labelled]:
    """The rollouts of a `rollouts.jsonl.zst` of a run, or of a .jsonl(.gz) with the same fields.

    Raises `UserError` for a file that cannot be read, a field that is missing, and a problem that is not among `problems`.
    """
    known = {problem.id: problem for problem in problems}
    found = []
    for number, row in enumerate(_records(path), 1):
        _require_fields(row, f"{path}: row {number}")
        if row["problem_id"] not in known:
            raise UserError(
                f"{path}: row {number} is of problem {row['problem_id']}, which is not among the run's training problems; "
                "name the run's own problems with --problems"
            )
        if row.get("infra"):
            continue  # not graded, so without a label
        found.append(
            Labelled(
                step=row.get("step", 0),
                problem_id=row["problem_id"],
                mode=row["mode"],
                view=row.get("view", "full"),
                messages=turns_of(known[row["problem_id"]], row["mode"], row["marker"]),
                response=row["response"],
                finished=row.get("finished", True),
                exploited=row["exploited"],
                gt_correct=row["gt_correct"],
            )
        )
    if not found:
        raise UserError(f"{path}: no labelled rollouts; name a rollouts file of a run")
    return found


def oracle_pairs(path: Path, problems: Sequence[Problem]) -> tuple[Pair, ...]:
    """One pair from each prompt that has a rollout that hacked and one that did not, at most `MAX_ORACLE_PAIRS`.

    The first of either kind is taken, prompts in the order of the file, a problem and mode once. What this is made of is
    ground truth, so what comes out of it is an upper bound.
    """
    by_prompt: dict[tuple[str, str], list[Labelled]] = defaultdict(list)
    for row in read_labelled(path, problems):
        by_prompt[row.problem_id, row.mode].append(row)
    pairs = []
    for (problem, mode), rows in by_prompt.items():
        hacks = [r for r in rows if r.exploited and r.finished]
        clean = [r for r in rows if not r.exploited and r.finished and r.messages == (hacks or rows)[0].messages]
        if hacks and clean and hacks[0].response.strip() and clean[0].response.strip():
            pairs.append(
                Pair(f"{mode}/{problem}", (mode,), hacks[0].messages, hack=hacks[0].response, clean=clean[0].response)
            )
    if len(pairs) < 2:
        raise UserError(
            f"{path}: {len(pairs)} prompt(s) with both a hack and another rollout; an oracle direction needs 2"
        )
    return tuple(pairs[:MAX_ORACLE_PAIRS])


def _require_fields(row: dict[str, Any], where: str) -> None:
    """Every field of its own type: "false" is no label, and a missing one is no clean row."""
    if missing := [name for name in _FIELDS if name not in row]:
        raise UserError(f"{where} lacks {missing[0]}; name a rollouts file of a run")
    for name, kind in (_FIELDS | _OPTIONAL).items():
        if name in row and type(row[name]) is not kind:
            raise UserError(
                f"{where}: field {name} is {row[name]!r:.60}, expected {kind.__name__}; name a rollouts file of a run"
            )
    if row["mode"] not in MODES or row.get("view", "full") not in get_args(View):
        raise UserError(
            f"{where}: mode {row['mode']!r} or view {row.get('view')!r} is unknown; expected one of {', '.join(MODES)}, and "
            f"of {', '.join(get_args(View))}"
        )
    try:
        row["response"].encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: field response is no text ({error}); drop the row") from None


def _records(path: Path) -> Iterable[dict[str, Any]]:
    try:
        if path.suffix == ".zst":
            for frame in read_frames(path):
                yield from frame.records()
            return
        opener = gzip.open if path.suffix == ".gz" else open
        with disk_errors(path, "read"), opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield json_object(line, f"{path}:{number}")
    except (ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a rollouts file of a run") from None
