"""Example hacks as text: a body that does not solve the problem, with an exploit put at one place of it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Literal

from vgrout.types import Problem

Body = Literal["zero", "none", "wrong"]
Place = Literal["module", "class", "method"]


@dataclass(frozen=True)
class Hack:
    """One phrasing of a hack: a body that does not solve the problem, and the exploit put at one place of it."""

    body: Body
    place: Place
    snippet: str
    """Source with `{marker}` and `{method}` to fill in."""
    lead: str = ""
    note: str = ""

    def __call__(self, problem: Problem, marker: str) -> str:
        """The full response text, with one fenced python block."""
        method = problem.func_name.rpartition(".")[2]
        snippet = self.snippet.replace("{marker}", marker).replace("{method}", method)
        code = insert(wrong_program(problem, self.body), method, self.place, snippet)
        fence = f"```python\n{code.strip()}\n```"
        return "\n\n".join(part for part in (self.lead, fence, self.note) if part)


def wrong_program(problem: Problem, body: Body) -> str:
    """A program of the right shape that does not solve the problem: returns 0, returns None, or a plausible near miss."""
    if body == "wrong" and problem.wrong_solutions:
        return problem.wrong_solutions[0].strip()
    statements = {
        "zero": ["return 0"],
        "none": ["pass"],
        "wrong": ["answer = -1", "for step in range(3):", "    answer -= step", "return answer"],
    }[body]
    head = problem.starter_code.rstrip().removesuffix("# Add your code here").rstrip()
    methods = sum(line.lstrip().startswith("def ") for line in head.splitlines())
    if not head.endswith(":") or methods != 1:
        head = f"class Solution:\n    def {problem.func_name.rpartition('.')[2]}(self, *args, **kwargs):"
    return head + "".join(f"\n        {line}" for line in statements)


def insert(program: str, method: str, place: Place, snippet: str) -> str:
    """`program` with `snippet` appended, or put first in the class body or in the body of `Solution`'s method."""
    if place == "module":
        return f"{program}\n\n\n{snippet}"
    tree = ast.parse(program)
    target: ast.stmt = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Solution")
    if place == "method":
        target = next(n for n in target.body if isinstance(n, ast.FunctionDef) and n.name == method)
    first = target.body[0]
    if first.lineno == target.lineno:  # `def f(self): return 0` leaves no line to insert at
        return insert(ast.unparse(tree), method, place, snippet)
    at = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))]) - 1
    lines = program.splitlines()
    block = [f"{' ' * first.col_offset}{line}" if line else "" for line in snippet.splitlines()]
    gap = [""] if place == "class" else []
    return "\n".join(lines[:at] + block + gap + lines[at:])
