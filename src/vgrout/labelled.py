"""Rollouts with ground-truth labels, read from files: for upper bounds and for measurements, never for an update."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgrout.directions.pairs import Pair
from vgrout.env.prompts import turns_of
from vgrout.run.disk import disk_errors
from vgrout.run.logs import read_frames
from vgrout.types import Problem, UserError

MAX_ORACLE_PAIRS = 48
_FIELDS = ("problem_id", "mode", "marker", "response", "exploited", "gt_correct")


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
        if missing := [name for name in _FIELDS if name not in row]:
            raise UserError(f"{path}: row {number} lacks {missing[0]}; name a rollouts file of a run")
        if row["problem_id"] not in known:
            raise UserError(
                f"{path}: row {number} is of problem {row['problem_id']}, which is not among the run's training problems; "
                "name the run's own problems with --problems"
            )
        if row.get("infra"):
            continue  # not graded, so without a label
        found.append(
            Labelled(
                step=int(row.get("step", 0)),
                problem_id=row["problem_id"],
                mode=row["mode"],
                view=row.get("view", "full"),
                messages=turns_of(known[row["problem_id"]], row["mode"], row["marker"]),
                response=row["response"],
                finished=bool(row.get("finished", True)),
                exploited=bool(row["exploited"]),
                gt_correct=bool(row["gt_correct"]),
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


def _records(path: Path) -> Iterable[dict[str, Any]]:
    if path.suffix == ".zst":
        for frame in read_frames(path):
            yield from frame.records()
        return
    opener = gzip.open if path.suffix == ".gz" else open
    with disk_errors(path, "read"), opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not a JSON object ({error}); mend the line") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object; mend the line")
            yield row
