"""A problem's tests, parsed once in the trusted process: `assert CALL == VALUE` becomes a call for the child and a value.

The call expressions go to the sandboxed child as compiled code; the expected values stay here, whatever happens there.
"""

from __future__ import annotations

import ast
import marshal
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from vgrout.env.server import is_plain_import
from vgrout.types import Problem, UserError

Kind = Literal["value", "list", "tree"]
"""How the child encodes a call's result: plain data, a linked list, a binary tree."""

PROBE_CALLS = 3
"""How many of a problem's calls a channel run drives."""
INSTANCE = "_instance"
"""The name that stands for `Solution()` in the calls of the attribute probe."""
_HELPERS: dict[str, tuple[Kind, str]] = {"is_same_list": ("list", "list_node"), "is_same_tree": ("tree", "tree_node")}
_NAMES = {"inf": math.inf, "nan": math.nan}


@dataclass(frozen=True)
class Linked:
    """An expected linked list (its values) or tree (its nodes in level order, [value] or None)."""

    kind: Kind
    items: list


@dataclass(frozen=True)
class Tests:
    """A problem's tests: what the child gets (set-up, calls, as marshalled code) and what it never gets (expected)."""

    problem_id: str
    prelude: tuple[str, ...]
    """The import statements that the set-up code begins with (of preloaded modules; the fork-server runs them once)."""
    setup: bytes
    """The rest of the set-up code; empty where there is none."""
    calls: bytes
    """What the child evaluates, as `marshalled_calls`: the shortest first, as long inputs take long and a run ends at the
    first value that is wrong."""
    expected: tuple[Any, ...]
    """For a linked list its values; for a tree its nodes in level order, [value] or None for a gap."""
    probe_calls: bytes
    """The data set's first calls, for the stdout and file probes."""
    instance_calls: bytes
    """The same with `Solution()` replaced by the name INSTANCE."""
    canonical: str
    """The canonical solution. It enters a sandbox by itself, to measure the CPU limit, or beside a program whose verdict
    is settled but for its label (`canonical_calls`)."""
    tolerance: float = 0.0
    """How far a float may be from the expected one."""


_PARSING = threading.Lock()
"""CPython counts the depth of a syntax tree per interpreter and not per thread: two threads that parse at once can fail
with "AST constructor recursion depth mismatch"."""


def parse_tests(problem: Problem) -> Tests:
    """The tests of a problem, parsed by one thread at a time. UserError as `_parse_tests`."""
    with _PARSING:
        return _parse_tests(problem)


def _parse_tests(problem: Problem) -> Tests:
    """The tests of a problem. UserError names the assert that is neither `CALL == VALUE` nor a known helper form."""
    parsed = []
    for position, text in enumerate(problem.asserts):
        try:
            call, kind, value = _parse_assert(text)
        except (ValueError, TypeError, OverflowError, SyntaxError, RecursionError) as error:
            raise UserError(
                f"problem {problem.id}: gt_answer[{position}]: {error}; expected 'assert CALL == VALUE' with a literal "
                f"VALUE, or is_same_list(CALL, list_node(VALUES)), or is_same_tree(CALL, tree_node(VALUES))"
            ) from error
        parsed.append((call, kind, value))
    try:
        prelude, rest = _split_setup(problem.setup_code)
        setup = marshal.dumps(compile(rest, "<setup>", "exec", dont_inherit=True)) if rest.body else b""
    except (SyntaxError, ValueError) as error:
        raise UserError(f"problem {problem.id}: setup_code does not compile ({error}); correct the row") from error
    first = [(call, kind) for call, kind, _ in parsed[:PROBE_CALLS]]
    cheap_first = sorted(range(len(parsed)), key=lambda n: len(problem.asserts[n]))
    calls = [parsed[n][:2] for n in cheap_first]
    return Tests(
        problem_id=problem.id,
        prelude=prelude,
        setup=setup,
        calls=marshalled_calls(calls),
        expected=tuple(parsed[n][2] for n in cheap_first),
        canonical=problem.canonical_solution,
        tolerance=problem.float_tolerance,
        probe_calls=marshalled_calls(first),
        instance_calls=marshalled_calls([(_OnInstance().visit(call), kind) for call, kind in first]),
    )


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


def marshalled_calls(calls: Iterable[tuple[ast.expr, Kind]]) -> bytes:
    """(code, kind) of each call, as one marshalled tuple, so that no grade has to marshal them again."""
    codes = [(compile(ast.Expression(call), "<call>", "eval", dont_inherit=True), kind) for call, kind in calls]
    return marshal.dumps(tuple(codes))


def canonical_calls(tests: Tests) -> bytes:
    """The canonical solution as the only call, a module to be executed."""
    with _PARSING:
        return marshal.dumps(((compile(tests.canonical, "<canonical>", "exec", dont_inherit=True), "value"),))


class _OnInstance(ast.NodeTransformer):
    """Replaces `Solution()` by the name INSTANCE."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id == "Solution" and not node.args and not node.keywords:
            return ast.copy_location(ast.Name(INSTANCE, ast.Load()), node)
        self.generic_visit(node)
        return node
