"""The strict oracle: what each test expects, and whether the values that came out of the sandbox are that.

The trusted process parses `assert CALL == VALUE` once per problem. The call expressions go to the child as compiled code;
the values stay here. The child's answers are compared *directed by the expected value*: its type says what is looked
for, lengths are compared first, and no container of the child's shape is ever rebuilt (a set of integers with colliding
hashes could stall the process). Equality is type-strict up to bool, int and float; a tuple is accepted where a list is
expected; NaN equals NaN; floats are exact.
"""

from __future__ import annotations

import ast
import json
import marshal
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from vgrout.env.server import is_plain_import
from vgrout.types import Problem, UserError

Kind = Literal["value", "list", "tree"]

_HELPERS: dict[str, tuple[Kind, str]] = {"is_same_list": ("list", "list_node"), "is_same_tree": ("tree", "tree_node")}
_NAMES = {"inf": math.inf, "nan": math.nan}
PROBE_CALLS = 3
"""How many of a problem's calls a channel run drives."""
_UNMATCHED = object()
_SHALLOW = 500
"""A line with fewer brackets than this cannot exhaust the parser's stack; with more, its depth is looked at first."""
INSTANCE = "_instance"
"""The name that stands for `Solution()` in the calls of the attribute probe."""


@dataclass(frozen=True)
class Tests:
    """A problem's tests: what the child gets (set-up, calls, as marshalled code) and what it never gets (expected)."""

    problem_id: str
    prelude: tuple[str, ...]
    """The import statements that the set-up code begins with (of preloaded modules; the fork-server runs them once)."""
    setup: bytes
    """The rest of the set-up code."""
    calls: tuple[tuple[bytes, Kind], ...]
    expected: tuple[Any, ...]
    """For a linked list its values; for a tree its nodes in level order, [value] or None for a gap."""
    probe_calls: tuple[tuple[bytes, Kind], ...]
    """The first calls, for the stdout and file probes."""
    instance_calls: tuple[tuple[bytes, Kind], ...]
    """The same with `Solution()` replaced by the name INSTANCE."""


def parse_tests(problem: Problem) -> Tests:
    """The tests of a problem. UserError names the assert that is neither `CALL == VALUE` nor a known helper form."""
    calls, expected = [], []
    for position, text in enumerate(problem.asserts):
        try:
            call, kind, value = _parse_assert(text)
        except (ValueError, SyntaxError, RecursionError) as error:
            raise UserError(
                f"problem {problem.id}: gt_answer[{position}]: {error}; expected 'assert CALL == VALUE' with a literal "
                f"VALUE, or is_same_list(CALL, list_node(VALUES)), or is_same_tree(CALL, tree_node(VALUES))"
            ) from error
        calls.append((call, kind))
        expected.append(value)
    try:
        prelude, rest = _split_setup(problem.setup_code)
        setup = marshal.dumps(compile(rest, "<setup>", "exec", dont_inherit=True))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"problem {problem.id}: setup_code does not compile ({error}); correct the row") from error
    first = calls[:PROBE_CALLS]
    return Tests(
        problem_id=problem.id,
        prelude=prelude,
        setup=setup,
        calls=tuple((_code(call), kind) for call, kind in calls),
        expected=tuple(expected),
        probe_calls=tuple((_code(call), kind) for call, kind in first),
        instance_calls=tuple((_code(_OnInstance().visit(call)), kind) for call, kind in first),
    )


def parse_line(line: bytes) -> list:
    """A line of the child's as a list that begins with the event; ["?"] for what is none, or is nested too deep."""
    if line.count(b"[") + line.count(b"{") > _SHALLOW and _depth(line) > _SHALLOW:
        return ["?"]
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return ["?"]
    return data if type(data) is list and data and type(data[0]) is str else ["?"]


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for bracket in re.sub(rb'"(?:[^"\\]|\\.)*"|[^][{}]', b"", line):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


class OutputJudge:
    """Reads the lines of an oracle run as they come and says when nothing more can change the verdict."""

    def __init__(self, tests: Tests):
        self.tests = tests
        self.ready = self.compiled = self.correct = False
        self.matched = 0
        self.reason = ""
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
            if not same(self.tests.expected[self.matched], rest[0]):
                return self._fail("mismatch")
            self.matched += 1
            self.correct = self.matched == len(self.tests.expected)
            return self.correct
        events = {"exception": "exception", "memory": "memory", "oversize": "oversize", "opaque": "mismatch"}
        return self._fail(events.get(event, "died"))

    def _fail(self, reason: str) -> bool:
        self.reason = reason
        return True


def same(expected: Any, got: Any) -> bool:
    """Whether `got`, JSON data as `encode` makes it, is the expected Python value."""
    kind = type(expected)
    if expected is None or kind is str:
        return type(got) is kind and got == expected
    if kind in (bool, int, float):
        number = _number(got)
        return number is not None and (number == expected or (number != number and expected != expected))
    if kind is list:
        items = got if type(got) is list else _tagged(got, "t")
        return items is not None and _all_same(expected, items)
    if kind is tuple:
        items = _tagged(got, "t")
        return items is not None and _all_same(expected, items)
    if kind is set:
        items = _tagged(got, "s")
        return items is not None and _same_mapping(dict.fromkeys(expected), [[item, None] for item in items])
    if kind is dict:
        pairs = _tagged(got, "d")
        return pairs is not None and _same_mapping(expected, pairs)
    assert kind is Linked, f"no comparison for {kind}"
    items = _tagged(got, "L" if expected.kind == "list" else "T")
    return items is not None and _all_same(expected.items, items)


@dataclass(frozen=True)
class Linked:
    """An expected linked list (its values) or tree (its nodes in level order, [value] or None)."""

    kind: Kind
    items: list


def _all_same(expected: list | tuple, items: list) -> bool:
    return len(expected) == len(items) and all(map(same, expected, items))


def _same_mapping(expected: dict, pairs: list) -> bool:
    """Whether the [key, value] pairs are those of the mapping, in any order. Only our own keys are ever in a dict."""
    if len(expected) != len(pairs):
        return False
    left = dict(expected)
    for pair in pairs:
        if type(pair) is not list or len(pair) != 2:
            return False
        key = _key(pair[0])
        if key not in left or not same(left.pop(key), pair[1]):
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


# ---- parsing --------------------------------------------------------------------------------------------------------


def _parse_assert(text: str) -> tuple[ast.expr, Kind, Any]:
    """(call expression, how its value is to be encoded, expected value)."""
    body = ast.parse(text).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise ValueError("not one assert statement")
    test = body[0].test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        return test.left, "value", literal(test.comparators[0])
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id in _HELPERS:
        kind, maker = _HELPERS[test.func.id]
        if len(test.args) == 2 and not test.keywords:
            values = _node_values(test.args[1], maker)
            return test.args[0], kind, Linked(kind, values if kind == "list" else level_order(values))
    raise ValueError(f"cannot use {ast.unparse(test)[:60]!r}")


def _node_values(node: ast.expr, maker: str) -> list:
    if isinstance(node, ast.Constant) and node.value is None:
        return []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == maker and len(node.args) == 1:
        values = literal(node.args[0])
        if isinstance(values, list):
            return values
    raise ValueError(f"expected {maker}([...]), got {ast.unparse(node)[:60]!r}")


def literal(node: ast.expr) -> Any:
    """The value of a literal expression, with `inf`, `nan`, `float("...")`, `set()` and signs; ValueError otherwise."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Attribute(value=ast.Name(id="math"), attr=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() | int() as value)], keywords=[]):
            return float(value)
        case ast.Call(func=ast.Name(id="set"), args=[], keywords=[]):
            return set()
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            value = literal(operand)
            if type(value) in (int, float):
                return -value if isinstance(node.op, ast.USub) else value
        case ast.List(elts=elements):
            return [literal(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(literal(element) for element in elements)
        case ast.Set(elts=elements):
            return {literal(element) for element in elements}
        case ast.Dict(keys=keys, values=values):
            pairs = [(literal(key), literal(value)) for key, value in zip(keys, values, strict=True) if key is not None]
            if len(pairs) == len(keys):
                return dict(pairs)
    raise ValueError(f"not a literal value: {ast.unparse(node)[:60]!r}")


def level_order(values: list) -> list:
    """The nodes of the tree that `tree_node(values)` builds, as the child encodes them: [value], or None for a gap.

    `values` gives both children of each node in turn, gaps as None and no children for a gap; missing ends are gaps.
    """
    if not values:
        return []
    nodes: list = [[values[0]]]
    rest = iter(values[1:])
    at = 0
    while at < len(nodes):
        if nodes[at] is not None:
            nodes += [None if (value := next(rest, None)) is None else [value] for _ in range(2)]
        at += 1
    while nodes and nodes[-1] is None:
        nodes.pop()
    return nodes


def _split_setup(setup_code: str) -> tuple[tuple[str, ...], ast.Module]:
    """The leading plain imports as statements, and the rest."""
    tree = ast.parse(setup_code)
    prelude = []
    while tree.body and is_plain_import(statement := ast.unparse(tree.body[0])):
        prelude.append(statement)
        del tree.body[0]
    return tuple(prelude), tree


def _code(call: ast.expr) -> bytes:
    return marshal.dumps(compile(ast.Expression(call), "<call>", "eval", dont_inherit=True))


class _OnInstance(ast.NodeTransformer):
    """Replaces `Solution()` by the name INSTANCE."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id == "Solution" and not node.args and not node.keywords:
            return ast.copy_location(ast.Name(INSTANCE, ast.Load()), node)
        self.generic_visit(node)
        return node
