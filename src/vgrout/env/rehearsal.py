"""What the fork-server does once before it serves: everything that a child does, on a program of its own.

The interpreter remembers what it has looked up (method caches, specialised bytecode, bound library functions). A child
that finds all this done writes to fewer pages of the memory that it shares with the server, and copying those is most of
what a short run costs. Nothing of it is visible to a program; no confinement is applied. Imports the standard library
only.
"""

from __future__ import annotations

import builtins
import marshal
import os
import types
from collections.abc import Callable

from vgrout.env import child
from vgrout.env.sandbox import DEFAULT_LIMITS, Confinement

TIMES = 20
"""Bytecode is specialised after some eight runs."""
_POOL, _POOL_OVERHEAD, _BYTES_OVERHEAD = 1 << 14, 48, 33
"""Sizes inside CPython's allocator; were they others, nothing but speed would be lost."""
_MAX_GAPS = 20_000
"""Of one size."""
_filling: list[list[object]] = []
_NULL = 1
"""The server's standard output, which is the null device."""
_PROGRAM = """
class Solution:
    def solve(self, values):
        total = 0
        for value in values:
            total += value if value > 0 else -value
        return [total, str(total), {"total": (total, [len(values), 0.5])}]

def run_tests():
    assert Solution().solve([1, -2])
"""


def rehearse(confinement: Confinement) -> None:
    """Run the program through the oracle's path and every probe's, reporting to the null device."""
    calls = [(f"Solution().solve({[*range(n)]})", "value") for n in range(4)]
    codes = tuple((compile(text, "<call>", "eval", dont_inherit=True), kind) for text, kind in calls)
    rlimits = confinement.rlimits(DEFAULT_LIMITS)
    usual = [probe for probe in child.PROBES if probe != "canonical"]  # which few responses need
    for _ in range(TIMES):
        for probe in (None, *usual):
            request = {"source": _PROGRAM, "setup": b"", "calls": marshal.dumps(codes), "probe": probe}
            request_fd = os.memfd_create("request")
            os.write(request_fd, marshal.dumps(request | {"names": ["run_tests"], "seal": ""}))
            module = types.ModuleType("solution")
            module.__dict__["__builtins__"] = builtins
            child.respond(child.received(request_fd), DEFAULT_LIMITS, child.Report(_NULL), module)
            os.close(request_fd)
    confinement.rehearse(rlimits)


def fill_gaps() -> None:
    """Fill what is free of the memory pools in use, for good, so that a child's new objects lie close together.

    CPython keeps small objects in pools of one size each and hands the gaps out first; spread over all that has been
    loaded, nearly every new object of a child would be on another page.
    """
    filling: list[object] = []
    makers: list[Callable[[], object]] = [object, lambda: float("1.5")]
    makers += [lambda size=size: bytes(size - _BYTES_OVERHEAD) for size in range(48, 513, 16)]
    for make in makers:
        for _ in range(_MAX_GAPS):
            filling.append(make())
            if id(filling[-1]) % _POOL == _POOL_OVERHEAD:  # the first of a new pool, which is given back
                filling.pop()
                break
    _filling.append(filling)
