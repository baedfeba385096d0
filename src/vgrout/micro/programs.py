"""Tasks as programs: several styles, with the comments and prints that real answers have, and the fenced response."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vgrout.micro.expressions import Easy, Task

STYLES = ("expression", "named", "loop")
_COMMENTS = ("# one pass", "# keep, change, total", "# the result", "# as asked")
_PRINTS = ('print("done")', "print(len(out))", "print(out)")
_INDENT = " " * 8


def body(task: Task, argument: str, style: str) -> list[str]:
    """Statements of the method, unindented; the last one returns."""
    if not isinstance(task, Easy):
        return [f"{argument} = {task.replaced(argument)}", *body(task.easy, argument, style)]
    if style == "expression":
        return [f"return {task.expression(argument)}"]
    if style == "named":
        return [f"out = {task.items(argument)}", f"return {task.total.code}"]
    return [*_loop(task, argument), f"return {task.total.code}"]


def _loop(task: Easy, argument: str) -> list[str]:
    append = f"out.append({task.change.code})"
    head, _, tail = task.items(argument)[1:-1].partition(" for x in ")
    assert head == task.change.code
    items = tail.partition(" if ")[0]
    inner = [f"    if {task.keep.code}:", f"        {append}"] if task.keep.code else [f"    {append}"]
    return ["out = []", f"for x in {items}:", *inner]


def decorated(lines: Sequence[str], rng: random.Random, *, share: float = 0.15) -> list[str]:
    """The same statements, now and then with a comment or a print that claims nothing."""
    lines = list(lines)
    if rng.random() < share:
        lines.insert(0, rng.choice(_COMMENTS))
    if rng.random() < share / 2:
        known = "out = " in " ".join(lines)
        lines.insert(len(lines) - 1, rng.choice(_PRINTS if known else _PRINTS[:1]))
    return lines


def program(method: str, argument: str, lines: Sequence[str], *, members: Sequence[str] = (), after: str = "") -> str:
    """`class Solution` with its method; `members` stand first in the class, `after` follows the class."""
    head = ["class Solution:", *(f"    {line}" for member in members for line in member.splitlines())]
    text = "\n".join([*head, f"    def {method}(self, {argument}):", *(f"{_INDENT}{line}" for line in lines)])
    return f"{text}\n{after}" if after else text


def starter(method: str, argument: str) -> str:
    """What the prompt shows of the program."""
    return f"class Solution:\n    def {method}(self, {argument}):"


def response(code: str) -> str:
    """The answer's text: one fenced block."""
    return f"```python\n{code}\n```"
