"""Values: how what a program returns crosses the sandbox and is compared with what the test expects.

Invariants:
- values compare by the stated rules: numbers, NaN, containers, and nothing that only claims to be equal
- floats are exact unless the row names a tolerance, which reaches into containers and nowhere else
- linked lists and trees cross the sandbox, as values and as shapes
- the shortest tests run first, so that a wrong program that is slow on long inputs is found wrong at once
"""

from __future__ import annotations

import ast
import time
from dataclasses import replace

from _attack_world import TOTAL
from _gate import Gate
from _grading import answer, expect_error, fence, prompt
from vgrout.env.asserts import level_order, literal, parse_tests
from vgrout.env.encode import Oversize, Unrepresentable, encode
from vgrout.env.grader import Grader
from vgrout.env.oracle import parse_line, same
from vgrout.types import Problem

gate = Gate(__doc__)

EQUAL = """
1 1 | 1 1.0 | 1 True | True 1 | 0.0 -0.0 | 2.5 2.5 | 10**5000 10**5000 | float("inf") 1e999 | -inf -1e999 | nan float("nan")
"a" "a" | "" "" | "\\ud800" "\\ud800" | None None | [] [] | [] () | [1, 2] (1, 2) | [[1], [2.0]] ([1], (2,)) | (1, 2) (1, 2)
{1, 2} {2, 1} | set() set() | {(1, 2), "x"} {"x", (1, 2)} | {"a": [1]} {"a": [1.0]} | {1: {2: 3}} {1: {2: 3}}
{1: 2} collections.Counter({1: 2}) | {1: 2} collections.defaultdict(int, {1: 2}) | [nan] [float("nan")] | [10**5000] [10**5000]
{True: 0} {1: 0} | [None, "x", 2] [None, "x", 2] | 9007199254740993 9007199254740993
"""
DIFFERENT = """
1 2 | 1 "1" | "1" 1 | 0 None | None 0 | None False | [] None | [1] [1, 1] | [1, 2] [2, 1] | (1, 2) [1, 2] | [1] {1} | {1} [1]
0.1 0.1000000001 | 9007199254740993 9007199254740992.0 | nan 0 | 0 float("nan") | inf 10**400 | 1 [1] | "ab" ["a", "b"]
{1, 2} {1, 3} | {1} frozenset({1}) | {1: 2} {1: 3} | {1: 2} {2: 2} | {1: 2} [[1, 2]] | [1, 2] {1: 2} | "a" b"a" | [1] "1"
[1, 2] range(1, 3) | 1 fractions.Fraction(1) | [1] collections.deque([1]) | 1 1j | "" False | {1: None} {1} | 10**5000 10**5000+1 | [[1], [2]] [[1], [3]] | {"a": [1]} {"a": [2]} | {(1, 2)} {(2, 1)}
"""


def cases(table: str) -> list[tuple[str, str]]:
    """(expected, returned) expressions of a table."""
    found = []
    for cell in table.replace("\n", " | ").split(" | "):
        for cut in (i for i, c in enumerate(cell.strip()) if c == " "):
            sides = cell.strip()[:cut], cell.strip()[cut:].strip()
            try:
                [ast.parse(side, mode="eval") for side in sides]
            except SyntaxError:
                continue
            found.append(sides)
            break
    return found


def matches(expected: str, returned: str, tolerance: float = 0.0) -> bool:
    names = {name: __import__(name) for name in ("collections", "fractions")} | {"inf": 1e999, "nan": float("nan")}
    wanted = eval(expected, names) if "**" in expected else literal(ast.parse(expected, mode="eval").body)
    try:
        text = encode(eval(returned, names), "value", 1 << 20, 64)
    except Unrepresentable:
        return False
    return same(wanted, parse_line(f'["v",{text}]'.encode())[1], tolerance)


@gate.invariant(
    "values compare by the stated rules: numbers, NaN, containers, and nothing that only claims to be equal"
)
def _():
    equal, different = cases(EQUAL), cases(DIFFERENT)
    assert len(equal) >= 30 and len(different) >= 35, (len(equal), len(different))
    for expected, returned in equal:
        assert matches(expected, returned), (expected, returned)
    for expected, returned in different:
        assert not matches(expected, returned), (expected, returned)
    forged = [
        '{"s":[1,1]}',
        '{"d":[[1,2],[1,2]]}',
        '{"d":[[1,2,3]]}',
        '{"t":[1],"s":[]}',
        '{"i":"zz"}',
        '{"x":1}',
        "{}",
    ]
    for text in forged:
        value = parse_line(f'["v",{text}]'.encode())[1]
        assert not any(same(wanted, value) for wanted in (0, 1, [1], (1,), {1, 2}, {1: 2}, None, "", {1: 2, 3: 4})), (
            text
        )
    for hostile in (
        b"[" * 9000,
        b'["v",' + b"[" * 9000 + b"]" * 9001,
        b'["v",' + b"9" * 9000 + b"]",
        b"\xff",
        b"7",
        b"{}",
    ):
        assert parse_line(hostile) == ["?"], hostile[:20]
    start = time.perf_counter()
    for endless in (b'"' + b'\\"' * 500_000, b'"\\' * 500_000, b'"' + b"\\" * 999_999):
        assert parse_line(b"[" * 600 + endless) == ["?"]
    assert time.perf_counter() - start < 30, "reading strings that never end is not of linear cost"
    start = time.perf_counter()
    assert not same(set(range(50000)), {"s": [k * (2**61 - 1) for k in range(50000)]})
    seconds = time.perf_counter() - start
    assert seconds < 30, seconds  # a quadratic comparison would take many minutes
    for bad in ([0] * 600000, 1 << 10**7, [[[]]]):
        try:
            encode(bad, "value", 1 << 20, 2)
        except Oversize:
            continue
        raise AssertionError("an oversize value was encoded")
    return f"{len(equal)} equal, {len(different)} different, {len(forged)} forged; colliding set {seconds * 1e3:.0f} ms"


NEAR = """
2.0 2.000009 | 2.0 1.999991 | 2.0 2 | 2 2.000009 | [0.5, [1.5]] [0.500001, (1.500001,)] | (0.5,) (0.500009,) | {"a": 0.1} {"a": 0.100001}
nan float("nan") | inf float("inf") | 0.0 -1e-06 | {1: [2.5]} {1.0: [2.500009]}
"""
FAR = """
2.0 2.0001 | 2.0 True | 1.0 1.0001 | True 1.000001 | 2 2.5 | inf 1e308 | 1e308 float("inf") | 0.0 float("nan") | nan 0.0 | 0.5 10**400
{0.5} {0.500001} | {0.5: 1} {0.500001: 1} | [0.5] [0.5, 0.5] | "0.5" 0.5 | 0.5 "0.500001" | 0.5 None | 10**400 0.5 | 5 6 | 0.5 [0.5]
"""


@gate.invariant("floats are exact unless the row names a tolerance, which reaches into containers and nowhere else")
def _():
    near, far = cases(NEAR), cases(FAR)
    assert len(near) >= 10 and len(far) >= 18, (len(near), len(far))
    for expected, returned in near:
        assert matches(expected, returned, 1e-5), (expected, returned)
    for expected, returned in far:
        assert not matches(expected, returned, 1e-5), (expected, returned)
    third = replace(TOTAL, id="third", asserts=("assert Solution().total(nums=[1]) == [0.33333, 2]",))
    loose = replace(third, id="loose", float_tolerance=1e-5)
    limits = {"third": 2.0, "loose": 2.0}
    with Grader([third, loose], cpu_limits=limits, workers=1) as grader:
        found = [
            grader.grade(prompt(problem=problem), answer(f"return [{value}, 2]")).gt_correct
            for problem in (third, loose)
            for value in ("0.33333", "1 / 3", "0.334")
        ]
    assert found == [True, False, False, True, True, False], found
    return f"{len(near)} near, {len(far)} far"


NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def tree_node(values):
    if not values:
        return None
    root = TreeNode(values[0])
    waiting, rest = [root], list(values[1:])
    while waiting and rest:
        node = waiting.pop(0)
        for side in ("left", "right"):
            if rest and (value := rest.pop(0)) is not None:
                child = TreeNode(value)
                setattr(node, side, child)
                waiting.append(child)
    return root
"""


@gate.invariant("linked lists and trees cross the sandbox, as values and as shapes")
def _():
    def problem(name: str, asserts: tuple[str, ...]) -> Problem:
        return replace(
            TOTAL, id=name, func_name="Solution().f", setup_code=NODES, asserts=asserts, canonical_solution="x"
        )

    tree, chain = "[1, 2, 3, None, 4, 5, None, None, 6]", "[1, 2, 3]"
    rows = {
        "list": problem("list", (f"assert is_same_list(Solution().f(list_node({chain})), list_node({chain}))",
                                 "assert is_same_list(Solution().f(list_node([])), None)")),
        "tree": problem("tree", (f"assert is_same_tree(Solution().f(tree_node({tree})), tree_node({tree}))",
                                 "assert is_same_tree(Solution().f(tree_node([])), tree_node([]))")),
    }  # fmt: skip
    wrong = {
        "list": ("return x.next if x else x", "return ListNode(1, list_node([2, 3.5]))", "x.next = x\nreturn x",
                 "return [1, 2, 3]", "return None", "return tree_node([1, 2, 3])"),
        "tree": ("return TreeNode(1, x.left, x.right) if x and x.val else TreeNode(0)", "return x.left if x else x",
                 "if x: x.left, x.right = x.right, x.left\nreturn x", "if x: x.right = x\nreturn x", "return 0"),
    }  # fmt: skip
    body = lambda text: fence("class Solution:\n    def f(self, x):\n        " + text.replace("\n", "\n        "))  # noqa: E731
    with Grader(rows.values(), cpu_limits=dict.fromkeys(rows, 2.0), workers=2) as grader:
        for name, row in rows.items():
            assert grader.grade(prompt(problem=row), body("return x")).gt_correct, name
            for text in wrong[name]:
                v = grader.grade(prompt(problem=row), body(text))
                assert not v.gt_correct and not v.infra, (name, text, v)
    assert level_order([1, None, 2, 3, None]) == [[1], None, [2], [3]] and level_order([]) == []
    expect_error("gt_answer[0]", lambda: parse_tests(replace(TOTAL, asserts=("assert Solution().f(1) == g(2)",))))
    return f"2 kinds, {sum(map(len, wrong.values()))} wrong shapes"


@gate.invariant("the shortest tests run first: a wrong program that never ends on a long input is found wrong at once")
def _() -> str:
    asserts = (f"assert Solution().total({list(range(40))}) == 780", "assert Solution().total([1, 2]) == 3")
    assert parse_tests(replace(TOTAL, asserts=asserts)).expected == (3, 780)
    slow = "if len(nums) > 2:\n    while True:\n        pass\nreturn "
    with Grader([replace(TOTAL, asserts=asserts)], workers=1, cpu_limits={TOTAL.id: 2.0}) as grader:
        wrong, right, sum_only = (
            grader.grade(prompt(), answer(body)) for body in (slow + "0", slow + "sum(nums)", "return sum(nums)")
        )
    assert (wrong.gt_correct, wrong.reason) == (False, "mismatch"), wrong
    assert (right.gt_correct, right.reason) == (False, "cpu") and sum_only.gt_correct, (right, sum_only)
    return f"{wrong.reason} and {right.reason}"


if __name__ == "__main__":
    gate.main()
