"""LeetCodeDataset rows to the benchmark's row form (`vgrout data convert`).

`candidate` becomes the row's entry point in every assert. A row whose tests hold anything but `L == R` and the two
helper forms is refused, with a reason in the report; so is a row that the loader itself would refuse. Both layouts of
the data set are read: v0.2 (facts under `meta`) and v0.3 (facts at the top).
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgrout.env.files import require_other_file, written_atomically
from vgrout.env.grader import Grader
from vgrout.env.problems import HELPERS, FieldError, parse_row
from vgrout.env.prompts import row_turns
from vgrout.env.rows import read_rows, shown
from vgrout.types import Problem, UserError

DIFFICULTIES = {"easy": "easy", "medium": "medium", "hard": "hard", "meidum": "medium"}
"""Lower-cased names; one is misspelt in some releases of the data set."""
_TOLERANCE = re.compile(r"[^.\n]*\b10 ?\^? ?-(?P<digits>[1-9])\b[^.\n]*")
"""A sentence with a power of ten; it names a tolerance where it says what is accepted."""
FENCE_LEAD = "Please complete the following python code precisely:"


@dataclass(frozen=True)
class ConversionReport:
    """What became of the rows of one file."""

    converted: int
    asserts: int
    difficulties: dict[str, int]
    refused: tuple[tuple[str, str], ...]
    """(row id, reason)"""
    verified: bool = False
    """Whether every converted row's canonical solution has passed the grader."""


class Refusal(Exception):
    """A row cannot be converted; the message is the reason."""


Verify = Callable[[Sequence[Problem]], Mapping[str, str]]
"""Of which problems the canonical solution fails, and why."""


def convert_leetcode_dataset(
    source: str | Path,
    out: str | Path,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
    verify: Verify | None = None,
) -> ConversionReport:
    """Convert a LeetCodeDataset .jsonl(.gz) file to `out` (.jsonl or .jsonl.gz), whole or not at all.

    `limit` reads only the first rows; `progress` is called with the number of rows read; a row is refused as well where
    `verify` (as `verified_by_grader`) says that its canonical solution fails. Raises UserError for a file that is not a
    LeetCodeDataset file (file, line and field named), for a bad `out`, and where no row can be kept.
    """
    out = Path(out)
    if out.suffixes[-1:] != [".jsonl"] and out.suffixes[-2:] != [".jsonl", ".gz"]:
        raise UserError(f"output {out}: expected a name that ends in .jsonl or .jsonl.gz")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1 row, or none for all of them")
    require_other_file(out, source)
    rows: dict[str, dict[str, Any]] = {}
    refused: list[tuple[str, str]] = []
    for count, (number, row) in enumerate(read_rows(source), 1):
        if limit is not None and count > limit:
            break
        identity = _identity(row, f"{source}:{number}")
        try:
            if identity in rows:
                raise Refusal("its id occurs twice")
            rows[identity] = _converted(row, identity)
        except Refusal as reason:
            refused.append((identity, str(reason)))
        if progress is not None:
            progress(count)
    if verify is not None:
        for identity, reason in verify([parse_row(row) for row in rows.values()]).items():
            del rows[identity]
            refused.append((identity, reason))
    if not rows:
        raise UserError(f"problem file {source}: no row could be converted ({len(refused)} refused: {refused[:1]})")
    _write(out, rows)
    return ConversionReport(
        converted=len(rows),
        asserts=sum(len(row["gt_answer"]) for row in rows.values()),
        difficulties=dict(Counter(row["difficulty"] for row in rows.values())),
        refused=tuple(refused),
        verified=verify is not None,
    )


def verified_by_grader(
    problems: Sequence[Problem],
    *,
    workers: int | None = None,
    allow_missing: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Of which problems the canonical solution fails in the sandbox, and why."""
    with Grader(problems, workers=workers, allow_missing=allow_missing) as grader:
        return grader.failing_solutions([problem.id for problem in problems], progress)


def _identity(row: dict[str, Any], where: str) -> str:
    """The question's number as a string, once the row is known to be of this data set."""
    for field in ("task_id", "prompt", "completion", "entry_point", "test"):
        if not isinstance(row.get(field), str):
            raise UserError(f"{where}: field {field!r}: expected a string, got {shown(row.get(field))}")
    identity = _facts(row).get("question_id")
    if not isinstance(identity, int | str) or isinstance(identity, bool) or identity == "":
        raise UserError(f"{where}: field 'meta.question_id': expected a number, got {shown(identity)}")
    return str(identity)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """question_id, difficulty, statement and starter code, wherever the release keeps them."""
    meta = row["meta"] if isinstance(row.get("meta"), dict) else row
    # From v0.3 on the statement is a field of its own, and the query a whole prompt around it.
    alone = str(meta.get("problem_description") or "").strip()
    asked = str(row.get("query") or "").split(FENCE_LEAD)[0].strip()
    full = str(meta.get("question_title") or "").strip()
    return {
        "question_id": meta.get("question_id"),
        "difficulty": meta.get("difficulty"),
        "statement": alone or max(full, asked, key=len),  # the query of some releases lacks the examples
        "starter_code": meta.get("lang_code") or meta.get("starter_code"),
    }


def _converted(row: dict[str, Any], identity: str) -> dict[str, Any]:
    facts, entry_point = _facts(row), row["entry_point"]
    difficulty = DIFFICULTIES.get(str(facts["difficulty"]).lower())
    if difficulty is None:
        raise Refusal(f"unknown difficulty {facts['difficulty']!r}")
    if not isinstance(facts["starter_code"], str) or not facts["statement"]:
        raise Refusal("no statement or no starter code")
    # The benchmark's starter code ends where the body begins.
    starter = facts["starter_code"].rstrip() + "\n        "
    converted = {
        "id": int(identity) if identity.isdigit() else identity,
        "difficulty": difficulty,
        "prompt": row_turns(facts["statement"], entry_point.rpartition(".")[2], starter),
        "gt_answer": _asserts(row["test"], entry_point),
        "setup_code": row["prompt"],
        "func_name": entry_point,
        "canonical_solution": row["completion"],
        "prompt_metadata": {"starter_code": starter},
    }
    if (tolerance := _tolerance(facts["statement"])) is not None:
        converted["float_tolerance"] = tolerance
    try:
        parse_row(converted)
    except FieldError as error:
        raise Refusal(str(error)) from error
    return converted


def _tolerance(statement: str) -> float | None:
    """What the statement says of floats: "answers within 10-5 of the actual answer will be accepted"."""
    for sentence in _TOLERANCE.finditer(statement):
        if "accept" in sentence[0]:
            return float(f"1e-{sentence['digits']}")
    return None


def _asserts(test: str, entry_point: str) -> list[str]:
    """The asserts of `def check(candidate): ...` with the entry point in the place of `candidate`."""
    try:
        (check,) = ast.parse(test).body
        call = ast.parse(entry_point, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise Refusal(f"its test is not one function check(candidate) ({error})") from error
    if not isinstance(check, ast.FunctionDef) or [a.arg for a in check.args.args] != ["candidate"]:
        raise Refusal("its test is not one function check(candidate)")
    return [_assert(statement, call) for statement in check.body]


def _assert(statement: ast.stmt, call: ast.expr) -> str:
    text = shown(ast.unparse(statement))
    if not isinstance(statement, ast.Assert) or statement.msg is not None:
        raise Refusal(f"not a plain assert: {text}")
    test = statement.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        called = test.left
    elif isinstance(test, ast.Call) and ast.unparse(test.func) in HELPERS and len(test.args) == 2:
        called = test.args[0]
    else:
        raise Refusal(f"neither L == R nor a known helper: {text}")
    if not (isinstance(called, ast.Call) and isinstance(called.func, ast.Name) and called.func.id == "candidate"):
        raise Refusal(f"the left side is not a call of the candidate: {text}")
    called.func = call
    if any(isinstance(node, ast.Name) and node.id == "candidate" for node in ast.walk(statement)):
        raise Refusal(f"the candidate is used twice: {text}")
    return ast.unparse(statement)


def _write(out: Path, rows: dict[str, dict[str, Any]]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()).encode()
    with written_atomically(out) as file:
        # Without a time stamp the same rows give the same bytes.
        file.write(gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
