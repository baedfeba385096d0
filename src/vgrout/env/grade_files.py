"""Grading of stored responses: `vgrout grade` without its command line.

Response rows: `id`, `problem_id`, `mode`, `response`, and optionally `markers` (train or eval). One verdict row per
response, in the responses' order: the row's `id` and every field of a Verdict. The responses are read twice: once to
check every row before anything is graded, once to grade them, a window at a time, so that files of any size do.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from vgrout.env.files import require_other_file, written_atomically
from vgrout.env.grader import Grader
from vgrout.env.modes import MODES, marker_for
from vgrout.env.problems import load_problems, read_rows, shown
from vgrout.types import Label, Markers, Prompt, UserError, Verdict

WINDOW = 1024
"""Responses submitted ahead of the verdict that is waited for."""


@dataclass(frozen=True)
class GradeSummary:
    """What came of a file of responses."""

    out: Path
    responses: int
    correct: int
    exploited: int
    infra: int
    labels: dict[str, int]
    layers: tuple[str, ...]
    missing_layers: tuple[str, ...]

    def __str__(self) -> str:
        counts = ", ".join(f"{self.labels.get(label, 0)} {label}" for label in get_args(Label))
        without = f", without {', '.join(self.missing_layers)}" if self.missing_layers else ""
        held = f"sandbox {', '.join(self.layers)}{without}"
        return f"{self.responses} responses graded ({counts}; {self.exploited} exploited; {held}): {self.out}"


def grade_files(
    problems_path: str | Path,
    responses_path: str | Path,
    out_path: str | Path,
    *,
    workers: int | None = None,
    allow_missing: tuple[str, ...] = (),
    namespaces: bool = False,
    progress: Callable[[int], None] | None = None,
) -> GradeSummary:
    """Grade a file of responses into a file of verdicts, which appears whole or not at all. All may be .gz.

    `progress` is called with the number of responses graded. Raises UserError naming file, line and field of a malformed
    row before anything is graded; and, once all verdicts are written, where some responses could not be graded.
    """
    responses, out = Path(responses_path), Path(out_path)
    require_other_file(out, problems_path, responses)
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1, or none for one per core")
    problems = {problem.id: problem for problem in load_problems(problems_path)}
    used = dict.fromkeys(prompt.problem_id for _, prompt, _ in response_rows(responses, problems.keys()))
    tally: Counter[str] = Counter()
    # The verdict file is opened first: a folder that cannot be written to is found out before the work.
    with (
        written_atomically(out) as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if out.suffix == ".gz" else nullcontext(file) as lines,
        Grader(
            [problems[i] for i in used], workers=workers, allow_missing=allow_missing, namespaces=namespaces
        ) as grader,
    ):
        try:
            grader.measure_limits()
        except UserError as error:
            raise UserError(f"{problems_path}: {error}") from error
        for done, (identity, verdict) in enumerate(_verdicts(grader, response_rows(responses, problems.keys())), 1):
            lines.write(json.dumps({"id": identity} | asdict(verdict)).encode() + b"\n")
            tally.update(
                {"correct": verdict.gt_correct, "exploited": verdict.exploited, "infra": verdict.infra}
                | ({} if verdict.infra else {verdict.label: 1})
            )
            tally["responses"] += 1
            if progress is not None:
                progress(done)
        layers = grader.layers, grader.missing_layers
    if tally["infra"]:
        raise UserError(
            f"{tally['infra']} of {tally['responses']} responses could not be graded for reasons of this machine; "
            f"their rows in {out} say infra: true; free memory, processes and disk space, then grade again"
        )
    labels = {label: tally[label] for label in get_args(Label)}
    counts = (tally[name] for name in ("responses", "correct", "exploited", "infra"))
    return GradeSummary(out, *counts, labels, *layers)


def response_rows(path: Path, problem_ids: Any) -> Iterator[tuple[int | str, Prompt, str]]:
    """(id, prompt, response) of each row, checked; UserError names file, line and field. Ids must not repeat."""
    lines: dict[str, int] = {}
    for number, row in read_rows(path):
        identity = _field(path, number, row, "id", (int, str), "an integer or a string")
        if str(identity) in lines:
            raise _wrong(path, number, "id", f"an id used once (line {lines[str(identity)]} has it too)", identity)
        lines[str(identity)] = number
        problem_id = str(_field(path, number, row, "problem_id", (int, str), "an id of the problem file"))
        if problem_id not in problem_ids:
            raise _wrong(path, number, "problem_id", f"one of the problem file's {len(problem_ids)} ids", problem_id)
        mode = _field(path, number, row, "mode", (str,), f"one of {', '.join(MODES)}")
        if mode not in MODES:
            raise _wrong(path, number, "mode", f"one of {', '.join(MODES)}", mode)
        markers: Markers = _field(path, number, {"markers": "train"} | row, "markers", (str,), "train or eval")
        if markers not in get_args(Markers):
            raise _wrong(path, number, "markers", "train or eval", markers)
        response = _field(path, number, row, "response", (str,), "a string")
        yield identity, Prompt(problem_id, mode, markers, marker_for(mode, problem_id, 0, markers), ()), response
    if not lines:
        raise UserError(f"response file {path}: no rows; expected one response per line")


def _verdicts(grader: Grader, rows: Iterator[tuple[int | str, Prompt, str]]) -> Iterator[tuple[int | str, Verdict]]:
    """(id, verdict) in the rows' order, never more than WINDOW of them in flight."""
    waiting: deque[int | str] = deque()
    for identity, prompt, response in rows:
        grader.submit(str(identity), prompt, response)
        waiting.append(identity)
        if len(waiting) >= WINDOW:
            yield waiting[0], grader.collect([str(waiting.popleft())])[0]
    while waiting:
        yield waiting[0], grader.collect([str(waiting.popleft())])[0]


def _field(path: Path, number: int, row: dict[str, Any], name: str, kinds: tuple[type, ...], expected: str) -> Any:
    if name not in row:
        raise _wrong(path, number, name, expected, "no such field")
    if not isinstance(row[name], kinds) or isinstance(row[name], bool):
        raise _wrong(path, number, name, expected, row[name])
    return row[name]


def _wrong(path: Path, number: int, field: str, expected: str, got: object) -> UserError:
    return UserError(f"{path}:{number}: field {field!r}: expected {expected}, got {shown(got)}")
