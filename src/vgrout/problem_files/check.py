"""`vgrout data check`: what is wrong with problem files, all of it at once, and which problems two files share.

Wrong: a row that does not load, a canonical solution that does not parse or fails the grader, and an id or a problem
statement that two files have in common. Only noted: problems with the same canonical solution, since some come in two
sizes, and a statement that occurs twice in one file.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vgrout.env.grader import Grader
from vgrout.env.problems import FieldError, parse_row, statement
from vgrout.env.rows import read_lines
from vgrout.inputs import SETS
from vgrout.problem_files.benchmark import sha256_of
from vgrout.problem_files.named import named_parts
from vgrout.run.progress import Progress
from vgrout.types import Problem, UserError

LISTED = 10
"""Findings of a kind and file that are printed; the number of all is."""
IN_FLIGHT = 64
"""Canonical solutions that wait for the grader at a time."""


@dataclass
class Checked:
    """One file (or set) and what was found in it."""

    name: str
    rows: int = 0
    problems: dict[str, Problem] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: str = "-"


def check_files(
    names: Sequence[str], *, solutions: bool = False, workers: int | None = None, allow_missing: tuple[str, ...] = ()
) -> tuple[str, bool]:
    """(report, whether nothing is wrong) of problem files and sets that ship.

    `solutions` also runs every canonical solution in the grader. Raises `UserError` where no file is named or one is
    named twice, for a bad number of workers and for a sandbox that does not start.
    """
    if not names or len(set(names)) != len(names):
        raise UserError(
            "vgrout data check: expected at least one file and none twice, as in `vgrout data check A.jsonl B.jsonl`"
        )
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1, or none for one per core")
    checked = [_read(name) for name in names]
    for one in checked:
        _within(one)
        if solutions and one.problems:
            one.faults += _failing(one, workers, allow_missing)
    shared, noted = _between(checked)
    return _report(checked, shared, noted, solutions), not shared and not any(one.faults for one in checked)


def _read(name: str) -> Checked:
    """Every row that loads, and a fault for every one that does not; a file that cannot be read at all is one fault."""
    one = Checked(name)
    if name in SETS:
        for problems in named_parts(name).values():
            one.problems |= {problem.id: problem for problem in problems}
        one.rows = len(one.problems)
        return one
    lines: dict[str, int] = {}
    try:
        for number, row in read_lines(name):
            one.rows += 1
            if isinstance(row, UserError):
                one.faults.append(str(row))
                continue
            try:
                problem = parse_row(row)
            except FieldError as error:
                one.faults.append(f"line {number}: {error}")
                continue
            if problem.id in lines:
                one.faults.append(f"line {number}: id {problem.id} is used twice (line {lines[problem.id]} has it too)")
                continue
            lines[problem.id] = number
            one.problems[problem.id] = problem
        one.sha256 = sha256_of(Path(name))
    except UserError as error:
        one.faults.append(str(error))
        return one
    if not one.rows:
        one.faults.append("no rows; expected one problem per line")
    return one


def _within(one: Checked) -> None:
    for problem in one.problems.values():
        try:
            ast.parse(problem.canonical_solution)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            one.faults.append(
                f"problem {problem.id}: its canonical solution does not parse ({error.__class__.__name__})"
            )
    for what, key in KEYS.items():
        if twins := [" = ".join(ids) for ids in _groups(one.problems.values(), key)]:
            one.notes.append(f"problems with the same {what}: {_listed(twins)}")


def _failing(one: Checked, workers: int | None, allow_missing: tuple[str, ...]) -> list[str]:
    """Why canonical solutions fail the grader, in the file's order."""
    with (
        Grader(one.problems.values(), workers=workers, allow_missing=allow_missing) as grader,
        Progress(f"running the canonical solutions of {one.name}", total=len(one.problems)) as bar,
        # Each thread only waits for the grader's own workers.
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):

        def reason(problem_id: str) -> str | None:
            try:
                grader.measure_limits([problem_id])
            except UserError as error:
                return str(error)
            return None

        found = []
        for text in pool.map(reason, one.problems):
            bar.advance()
            found.append(text)
    return [text for text in found if text is not None]


def solution(problem: Problem) -> str:
    """The canonical solution without comments and layout; its text where it does not parse."""
    try:
        return ast.dump(ast.parse(problem.canonical_solution))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return problem.canonical_solution


KEYS: dict[str, Callable[[Problem], str]] = {"statement": statement, "canonical solution": solution}


def _groups(problems: Iterable[Problem], key: Callable[[Problem], str]) -> list[list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        found[key(problem)].append(problem.id)
    return [ids for ids in found.values() if len(ids) > 1]


def _between(checked: Sequence[Checked]) -> tuple[list[str], list[str]]:
    """(what is wrong, what is only noted) about pairs of files."""
    wrong, noted = [], []
    for i, one in enumerate(checked):
        for other in checked[i + 1 :]:
            both = f"{one.name} and {other.name} share"
            if ids := [problem_id for problem_id in one.problems if problem_id in other.problems]:
                wrong.append(f"{both} {_count(ids, 'id')}")
            for what, key in KEYS.items():
                theirs = {key(problem): problem.id for problem in other.problems.values()}
                keys = {problem.id: key(problem) for problem in one.problems.values()}
                pairs = [f"{problem_id} = {theirs[k]}" for problem_id, k in keys.items() if k in theirs]
                if pairs:
                    (wrong if what == "statement" else noted).append(f"{both} {_count(pairs, what)}")
    return wrong, noted


def _count(found: Sequence[str], what: str) -> str:
    return f"{len(found)} {what}{'' if len(found) == 1 else 's'}: {_listed(found)}"


def _listed(found: Sequence[str]) -> str:
    return ", ".join(found[:LISTED]) + (", ..." if len(found) > LISTED else "")


def _report(checked: Sequence[Checked], shared: Sequence[str], noted: Sequence[str], solutions: bool) -> str:
    head = ("file", "rows", "load", "easy", "medium", "hard", "other", "asserts", "per problem", "sha256")
    table = [head, *(_line(one) for one in checked)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(w) if i in (0, len(head) - 1) else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in table
    ]
    for kind, of in (("wrong", lambda one: one.faults), ("noted", lambda one: one.notes)):
        for one in checked:
            lines += [f"{kind}: {one.name}: {text}" for text in of(one)[:LISTED]]
            if len(of(one)) > LISTED:
                lines.append(f"{kind}: {one.name}: and {len(of(one)) - LISTED} more")
    lines += [f"wrong: {text}; a model that trains on one of them is not held out from the other" for text in shared]
    lines += [f"noted: {text}; some problems come in two sizes" for text in noted]
    faults = sum(len(one.faults) for one in checked) + len(shared)
    total = sum(len(one.problems) for one in checked)
    ran = "their canonical solutions pass the grader" if solutions else "canonical solutions were not run (--solutions)"
    lines.append(
        f"{total} problems, nothing wrong; {ran}" if not faults else f"{total} problems load, {faults} things are wrong"
    )
    return "\n".join(lines)


def _line(one: Checked) -> tuple[str, ...]:
    problems = one.problems.values()
    by = Counter(problem.difficulty for problem in problems)
    levels = ("easy", "medium", "hard")
    asserts = sum(len(problem.asserts) for problem in problems)
    rest = sum(by.values()) - sum(by[level] for level in levels)
    counts = (one.rows, len(problems), *(by[level] for level in levels), rest)
    mean = f"{asserts / len(problems):.1f}" if problems else "-"
    return (one.name, *map(str, counts), f"{asserts:,}", mean, one.sha256)
