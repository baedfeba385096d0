"""Grading of stored responses: `vgrout grade` without its command line.

Response rows: `id`, `problem_id`, `mode`, `response`, and optionally `markers` (train or eval). One verdict row per
response, in the responses' order: the row's `id` and every field of a Verdict. The responses are read twice: once to
check every row before anything is graded, once to grade them, a window at a time, so that files of any size do.

While it grades, the verdicts are also kept by content in `OUT.partial`. It is removed once the verdict file is whole;
where grading was interrupted the same command finds them there and grades the rest.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from vgrout.env.batches import Progress
from vgrout.env.files import require_other_file, written_atomically
from vgrout.env.grader import Grader
from vgrout.env.modes import MODES, marker_for
from vgrout.env.problems import load_problems
from vgrout.env.rows import read_rows, shown
from vgrout.env.store import VerdictStore
from vgrout.types import Interrupted, Label, Markers, Prompt, UserError

PARTIAL = ".partial"
"""What is appended to the output's name for the verdicts so far."""


@dataclass(frozen=True)
class GradeSummary:
    """What came of a file of responses."""

    out: Path
    responses: int
    correct: int
    exploited: int
    infra: int
    known: int
    """Verdicts that the cache had, of an earlier run or of the same program before."""
    labels: dict[str, int]
    layers: tuple[str, ...]
    missing_layers: tuple[str, ...]

    def __str__(self) -> str:
        counts = ", ".join(f"{self.labels.get(label, 0)} {label}" for label in get_args(Label))
        without = f", without {', '.join(self.missing_layers)}" if self.missing_layers else ""
        held = f"sandbox {', '.join(self.layers)}{without}"
        known = f", {self.known} from the cache" if self.known else ""
        return f"{self.responses} responses graded{known} ({counts}; {self.exploited} exploited; {held}): {self.out}"


def grade_files(
    problems_path: str | Path,
    responses_path: str | Path,
    out_path: str | Path,
    *,
    workers: int | None = None,
    allow_missing: tuple[str, ...] = (),
    namespaces: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> GradeSummary:
    """Grade a file of responses into a file of verdicts, which appears whole or not at all. All may be .gz.

    `cache`: file of verdicts that are not to be computed again; it is kept and may serve other files as well. `progress`
    is called with the number of responses graded and of all. Raises UserError naming file, line and field of a malformed
    row before anything is graded, and, once all verdicts are written, where some responses could not be graded;
    Interrupted on Ctrl-C, when what was graded is in the cache or in `OUT.partial`.
    """
    responses, out = Path(responses_path), Path(out_path)
    require_other_file(out, problems_path, responses)
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1, or none for one per core")
    problems = {problem.id: problem for problem in load_problems(problems_path)}
    total, used = 0, set[str]()
    for _, prompt, _ in response_rows(responses, problems.keys()):
        total += 1
        used.add(prompt.problem_id)
    tally: Counter[str] = Counter()
    kept = out.with_name(out.name + PARTIAL) if cache is None else Path(cache)
    if kept.resolve() == out.resolve():
        raise UserError(f"--cache {kept}: is the output itself; name another file")
    # The verdict file is opened first: a folder that cannot be written to is found out before the work.
    with (
        _kept(kept, temporary=cache is None),
        written_atomically(out) as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if out.suffix == ".gz" else nullcontext(file) as lines,
        VerdictStore(kept) as store,
        Grader(
            [p for i, p in problems.items() if i in used],
            workers=workers,
            allow_missing=allow_missing,
            namespaces=namespaces,
            store=store,
        ) as grader,
    ):
        try:
            grader.measure_limits()
        except UserError as error:
            raise UserError(f"{problems_path}: {error}") from error
        ids: deque[int | str] = deque()
        for verdict in grader.stream(_items(response_rows(responses, problems.keys()), ids)):
            lines.write(json.dumps({"id": ids.popleft()} | asdict(verdict)).encode() + b"\n")
            tally.update(
                {"correct": int(verdict.gt_correct), "exploited": int(verdict.exploited), "infra": int(verdict.infra)}
                | ({} if verdict.infra else {verdict.label: 1})
            )
            tally["responses"] += 1
            if progress is not None:
                progress(tally["responses"], total)
        layers, tally["known"] = (grader.layers, grader.missing_layers), grader.cache_hits
    if cache is None and not tally["infra"]:
        kept.unlink()
    if tally["infra"]:
        raise UserError(
            f"{tally['infra']} of {tally['responses']} responses could not be graded for reasons of this machine; "
            f"their rows in {out} say infra: true; free memory, processes and disk space, then grade again, which takes up "
            "the verdicts that there are"
        )
    labels = {label: tally[label] for label in get_args(Label)}
    counts = (tally[name] for name in ("responses", "correct", "exploited", "infra", "known"))
    return GradeSummary(out, *counts, labels, *layers)


def response_rows(path: Path, problem_ids: Any) -> Iterator[tuple[int | str, Prompt, str]]:
    """(id, prompt, response) of each row, checked; UserError names file, line and field. Ids must not repeat."""
    lines: dict[str, int] = {}
    for number, row in read_rows(path, "response"):
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


def _items(rows: Iterator[tuple[int | str, Prompt, str]], ids: deque[int | str]) -> Iterator[tuple[Prompt, str]]:
    """The rows as a grader takes them; the ids of those that it has taken go to `ids`."""
    for identity, prompt, response in rows:
        ids.append(identity)
        yield prompt, response


@contextmanager
def _kept(path: Path, *, temporary: bool) -> Generator[None]:
    """Says what is kept in `path` when the block is interrupted; a temporary file into which nothing came is removed."""

    def count() -> int:
        if not path.exists():
            return 0
        with VerdictStore(path) as store:
            found = len(store)
        if temporary and not found:
            path.unlink()
        return found

    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(f"{count()} verdicts are kept in {path}; the same command grades the rest") from stop
    except BaseException:
        count()
        raise


def _field(path: Path, number: int, row: dict[str, Any], name: str, kinds: tuple[type, ...], expected: str) -> Any:
    if name not in row:
        raise _wrong(path, number, name, expected, "no such field")
    if not isinstance(row[name], kinds) or isinstance(row[name], bool):
        raise _wrong(path, number, name, expected, row[name])
    return row[name]


def _wrong(path: Path, number: int, field: str, expected: str, got: object) -> UserError:
    return UserError(f"{path}:{number}: field {field!r}: expected {expected}, got {shown(got)}")
