"""The strict oracle: whether the values that came out of the sandbox are the expected ones.

The child's answers are compared *directed by the expected value*: its type says what is looked for, lengths are compared
first, and no container of the child's shape is ever rebuilt (a set of integers with colliding hashes could stall the
process). Equality is type-strict up to bool, int and float; a tuple is accepted where a list is expected; NaN equals NaN;
floats are exact, or within the tolerance that the problem's row names (keys and members of sets always exact).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from vgrout.env.asserts import Linked, Tests

_UNMATCHED = object()
_decode = json.JSONDecoder().decode
_SHALLOW = 500
"""A line with fewer brackets than this cannot exhaust the parser's stack; with more, its depth is looked at first."""


def parse_line(line: bytes) -> list:
    """A line of the child's as a list that begins with the event; ["?"] for what is none, or is nested too deep."""
    if line.count(b"[") + line.count(b"{") > _SHALLOW and _depth(line) > _SHALLOW:
        return ["?"]
    try:
        data = _decode(str(line, "utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return ["?"]
    return data if type(data) is list and data and type(data[0]) is str else ["?"]


_NO_BRACKETS = re.compile(rb'"(?:[^"\\]+|\\.)*+"?|[^][{}"]+')
"""A string, also one that never ends, or what stands between brackets; never read twice, so of linear cost."""


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for bracket in _NO_BRACKETS.sub(b"", line):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


@dataclass(frozen=True)
class OracleResult:
    """What the strict oracle found about one program."""

    correct: bool
    compiles: bool
    reason: str
    wall_s: float
    cpu_s: float
    matched: int = 0
    """How many asserts held before the first that did not."""
    detail: str = ""
    """The class of the exception that ended the run."""


class OutputJudge:
    """Reads the lines of an oracle run as they come and says when nothing more can change the verdict."""

    def __init__(self, tests: Tests):
        self.tests = tests
        self.ready = self.compiled = self.correct = False
        self.matched = 0
        self.reason = ""
        self.detail = ""
        """The class of the exception that ended the run, by the child's word."""
        self.trouble = ""
        """What kept the candidate from being run at all: "infra: ..." or "setup: ..."."""

    def __call__(self, line: bytes) -> bool:
        """Take one line; True once the verdict is settled."""
        event, *rest = parse_line(line)
        if not self.ready:
            self.ready = event == "ready"
            self.trouble = "" if self.ready else f"{event}: {rest[0] if rest else ''}"
            return not self.ready
        if not self.compiled:
            if event == "compiled":
                self.compiled = True
                return False
            return self._fail("memory" if event == "memory" else "syntax")
        if event == "v" and len(rest) == 1:
            if not same(self.tests.expected[self.matched], rest[0], self.tests.tolerance):
                return self._fail("mismatch")
            self.matched += 1
            self.correct = self.matched == len(self.tests.expected)
            return self.correct
        events = {"exception": "exception", "memory": "memory", "oversize": "oversize", "opaque": "mismatch"}
        if event == "exception" and rest and type(rest[0]) is str:
            self.detail = rest[0][:80]
        return self._fail(events.get(event, "died"))

    def _fail(self, reason: str) -> bool:
        self.reason = reason
        return True


def same(expected: Any, got: Any, tolerance: float = 0.0) -> bool:
    """Whether `got`, JSON data as `encode` makes it, is the expected Python value, floats up to `tolerance`."""
    kind = type(expected)
    if expected is None or kind is str:
        return type(got) is kind and got == expected
    if kind in (bool, int, float):
        number = _number(got)
        return number is not None and (
            number == expected
            or (number != number and expected != expected)
            or (tolerance > 0 and _near(expected, number, tolerance))
        )
    if kind is list:
        items = got if type(got) is list else _tagged(got, "t")
        return items is not None and _all_same(expected, items, tolerance)
    if kind is tuple:
        items = _tagged(got, "t")
        return items is not None and _all_same(expected, items, tolerance)
    if kind is set:
        items = _tagged(got, "s")
        return items is not None and _same_mapping(dict.fromkeys(expected), [[item, None] for item in items])
    if kind is dict:
        pairs = _tagged(got, "d")
        return pairs is not None and _same_mapping(expected, pairs, tolerance)
    assert kind is Linked, f"no comparison for {kind}"
    items = _tagged(got, "L" if expected.kind == "list" else "T")
    return items is not None and _all_same(expected.items, items, tolerance)


def _near(expected: int | float, got: int | float, tolerance: float) -> bool:
    """Whether two finite numbers, at least one of them a float and neither a bool, differ by no more than `tolerance`."""
    if float not in (type(expected), type(got)) or bool in (type(expected), type(got)):
        return False
    try:
        return abs(got - expected) <= tolerance
    except OverflowError:  # an integer that no float can hold
        return False


def _all_same(expected: list | tuple, items: list, tolerance: float) -> bool:
    return len(expected) == len(items) and all(map(same, expected, items, repeat(tolerance)))


def _same_mapping(expected: dict, pairs: list, tolerance: float = 0.0) -> bool:
    """Whether the [key, value] pairs are those of the mapping, in any order. Only our own keys are ever in a dict."""
    if len(expected) != len(pairs):
        return False
    left = dict(expected)
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2:
            return False
        key = _key(pair[0])
        if key not in left or not same(left.pop(key), pair[1], tolerance):
            return False
    return True


def _key(got: Any) -> Any:
    """A set element or dict key as a Python value; an unmatched one where it is neither a scalar nor a tuple of such."""
    if got is None or type(got) is str:
        return got
    if (items := _tagged(got, "t")) is not None:
        return tuple(_key(item) for item in items)
    number = _number(got)
    return _UNMATCHED if number is None else number


def _number(got: Any) -> bool | int | float | None:
    if type(got) in (bool, int, float):
        return got
    if type(got) is dict and type(text := got.get("i")) is str:
        try:
            return int(text, 16)
        except ValueError:
            return None
    return None


def _tagged(got: Any, tag: str) -> list | None:
    if type(got) is not dict or len(got) != 1:
        return None
    items = got.get(tag)
    return items if type(items) is list else None
