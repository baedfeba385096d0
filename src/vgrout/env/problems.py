"""Problem rows: one loader for the public benchmark's files, for converted files and for the built-in set.

A row is refused with `FILE:LINE: field 'NAME': expected ..., got ...`; nothing is skipped silently. Only blank lines
and fields that the product does not read are passed over.
"""

from __future__ import annotations

import ast
import importlib.resources
import keyword
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vgrout.env.modes import PLAIN_PHRASE
from vgrout.env.rows import Rows, read_rows, shown
from vgrout.types import Problem, UserError

HELPERS = ("is_same_list", "is_same_tree")
"""Assert forms besides `L == R`: the oracle compares linked lists and binary trees itself."""

ROLES = ("system", "user", "assistant")
"""Roles of a chat turn; templates drop or refuse others."""


class FieldError(Exception):
    """A field of a row is not what it must be; the loader adds file and line."""

    def __init__(self, field: str, expected: str, got: object):
        super().__init__(f"field {field!r}: expected {expected}, got {shown(got)}")


def load_problems(path: str | Path) -> tuple[Problem, ...]:
    """All rows of a .jsonl or .jsonl.gz file in the benchmark's row form, in the file's order.

    Raises UserError for a file that is missing, empty or not what its name says, and for the first malformed row.
    """
    return _parse_rows(read_rows(path), str(path))


def builtin_problems() -> tuple[Problem, ...]:
    """The problems that ship with the package; they need no download."""
    train, held_out = builtin_split()
    return train + held_out


def builtin_split() -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """(train, held_out) of the built-in set, disjoint; the division is stored with the rows."""
    with importlib.resources.as_file(importlib.resources.files("vgrout.env") / "data" / "builtin.jsonl") as path:
        rows = list(read_rows(path))
    problems = _parse_rows(iter(rows), "builtin.jsonl")
    split = [row["split"] for _, row in rows]
    train = tuple(p for p, name in zip(problems, split, strict=True) if name == "train")
    held_out = tuple(p for p, name in zip(problems, split, strict=True) if name == "held_out")
    assert_disjoint(train=train, held_out=held_out)
    return train, held_out


def assert_disjoint(**named: Iterable[Problem | str]) -> None:
    """Raise UserError naming what two of the named sets (of problems or of ids) have in common: ids, or statements.

    Collections number the same problem differently, so ids alone do not tell.
    """
    sets = {name: tuple(members) for name, members in named.items()}
    ids = {name: {p if isinstance(p, str) else p.id: p for p in members} for name, members in sets.items()}
    texts = {name: {statement(p): p.id for p in members if not isinstance(p, str)} for name, members in sets.items()}
    names = list(sets)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if common := sorted(ids[one].keys() & ids[other].keys()):
                raise UserError(
                    f"problem sets {one} and {other} must be disjoint but share {len(common)} ids: {_some(common)}"
                )
            if common := sorted(texts[one].keys() & texts[other].keys()):
                pairs = [f"{texts[one][text]} is {texts[other][text]}" for text in common]
                raise UserError(
                    f"problem sets {one} and {other} must be disjoint but share {len(common)} statements: {_some(pairs)}"
                )


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")


def statement(problem: Problem) -> str:
    """The problem's text without the sentence of the hint slot and what follows it, blanks folded, case ignored.

    So a problem is known again when another program has wrapped it.
    """
    text = next((content for role, content in problem.messages if role == "user" and PLAIN_PHRASE in content), "")
    if not text:
        return " ".join(content for _, content in problem.messages).casefold()
    before = text[: text.index(PLAIN_PHRASE)]
    before = before[: max(before.rfind("\n"), 0)] or before
    return " ".join(before.split()).removeprefix("PROBLEM:").strip().casefold()


def _parse_rows(rows: Rows, name: str) -> tuple[Problem, ...]:
    problems: dict[str, Problem] = {}
    first_line: dict[str, int] = {}
    for number, row in rows:
        try:
            problem = parse_row(row)
            if problem.id in problems:
                raise FieldError("id", f"an id used once (line {first_line[problem.id]} has it too)", row["id"])
        except FieldError as error:
            raise UserError(f"{name}:{number}: {error}") from error
        problems[problem.id], first_line[problem.id] = problem, number
    if not problems:
        raise UserError(f"problem file {name}: no rows; expected one problem per line")
    return tuple(problems.values())


# ---- one row ----------------------------------------------------------------------------------------------------


def parse_row(row: dict[str, Any]) -> Problem:
    """A Problem from a row in the benchmark's form; FieldError names the field that is wrong."""
    if {"task_id", "entry_point", "completion"} <= row.keys():
        raise FieldError(
            "gt_answer", "the benchmark's row form; run `vgrout data convert` first", "a LeetCodeDataset row"
        )
    identity = _field(row, "id", (int, str), "an integer or a non-empty string")
    if identity == "" or not str(identity).isprintable():
        raise FieldError("id", "an integer or a non-empty string without control characters", ascii(identity))
    func_name = _text(row, "func_name")
    method = func_name.removeprefix("Solution().")
    if method == func_name or not method.isidentifier() or keyword.iskeyword(method):
        raise FieldError("func_name", "'Solution().NAME' with the name of a Python method", func_name)
    metadata = _field(row, "prompt_metadata", (dict,), "an object with 'starter_code'")
    if not isinstance(metadata.get("starter_code"), str):
        raise FieldError("prompt_metadata.starter_code", "a string", metadata.get("starter_code"))
    wrong = row.get("wrong_solutions", [])
    if not isinstance(wrong, list) or not all(isinstance(w, str) and w.strip() for w in wrong):
        raise FieldError("wrong_solutions", "a list of non-empty strings", wrong)
    tolerance = row.get("float_tolerance", 0.0)
    if type(tolerance) not in (int, float) or not 0 <= tolerance < 1:
        raise FieldError("float_tolerance", "a number from 0 to below 1", tolerance)
    problem = Problem(
        id=str(identity),
        difficulty=_text(row, "difficulty"),
        messages=_messages(row),
        asserts=_asserts(row),
        setup_code=_field(row, "setup_code", (str,), "a string"),
        func_name=func_name,
        canonical_solution=_text(row, "canonical_solution"),
        starter_code=metadata["starter_code"],
        wrong_solutions=tuple(wrong),
        float_tolerance=float(tolerance),
    )
    texts = {"prompt": "".join(content for _, content in problem.messages), "wrong_solutions": "".join(wrong)}
    texts |= {
        name: getattr(problem, name) for name in ("difficulty", "setup_code", "canonical_solution", "starter_code")
    }
    for name, text in texts.items():
        if (lone := re.search("[\ud800-\udfff]", text)) is not None:
            raise FieldError(name, "text that UTF-8 can hold", f"the lone surrogate {lone[0]!a}")
    return problem


def assert_form(text: str) -> str | None:
    """Why an assert cannot be used, or None if it is `assert L == R` or `assert HELPER(call, value)`."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"does not parse ({error.__class__.__name__})"
    if len(body) != 1 or not isinstance(body[0], ast.Assert) or body[0].msg is not None:
        return "not one assert statement without a message"
    test = body[0].test
    if isinstance(test, ast.Compare):
        return None if len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq) else "not a single =="
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id in HELPERS:
        return None if len(test.args) == 2 and not test.keywords else f"{test.func.id} takes two arguments"
    return f"neither L == R nor {' / '.join(HELPERS)}"


def _asserts(row: dict[str, Any]) -> tuple[str, ...]:
    expected = "a non-empty list of 'assert L == R' strings"
    asserts = _field(row, "gt_answer", (list,), expected)
    if not asserts or not all(isinstance(a, str) for a in asserts):
        raise FieldError("gt_answer", expected, asserts)
    for position, text in enumerate(asserts):
        if (reason := assert_form(text)) is not None:
            known = " or ".join(f"'assert {helper}(CALL, VALUE)'" for helper in HELPERS)
            raise FieldError(f"gt_answer[{position}]", f"'assert L == R' or {known}", f"{shown(text)}: {reason}")
    return tuple(asserts)


def _messages(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    expected = "a list of {'role': ..., 'content': ...} turns that ends with the user's"
    turns = _field(row, "prompt", (list,), expected)
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise FieldError("prompt", expected, turn)
        if turn["role"] not in ROLES:
            raise FieldError("prompt", f"turns whose role is one of {', '.join(ROLES)}", turn["role"])
    if not turns or turns[-1]["role"] != "user":
        raise FieldError("prompt", expected, turns)
    count = sum(turn["content"].count(PLAIN_PHRASE) for turn in turns if turn["role"] == "user")
    if count != 1:
        raise FieldError("prompt", f"the hint slot {PLAIN_PHRASE!r} once in the user turn", f"{count} of them")
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _field(row: dict[str, Any], name: str, kinds: tuple[type, ...], expected: str) -> Any:
    if name not in row:
        raise FieldError(name, expected, "no such field")
    if not isinstance(row[name], kinds) or isinstance(row[name], bool):
        raise FieldError(name, expected, row[name])
    return row[name]


def _text(row: dict[str, Any], name: str) -> str:
    value = _field(row, name, (str,), "a non-empty string")
    if not value.strip():
        raise FieldError(name, "a non-empty string", value)
    return value
