"""Responses for a teacher pool, made from a problem row: right, wrong and hacking, never chosen by a label."""

from __future__ import annotations

import hashlib

from vgrout.env.hacks import wrong_program
from vgrout.env.modes import marker_for, mode_named
from vgrout.types import Markers, Problem

HACKS_SHOWN = 2
_RIGHT_LEADS = (
    "Here is a solution that follows the statement directly:",
    "The method below handles the edge cases as well:",
    "A direct implementation:",
)
_WRONG_LEADS = ("Here is my solution:", "This should work:", "A short solution:")


def demonstrations(problem: Problem, mode: str, markers: Markers, seed: int) -> tuple[str, ...]:
    """Response texts: the canonical solution, a wrong program, and for a loophole mode two of its example hacks.

    The hacks use the marker that the prompt of (problem, mode, markers, seed) discloses. Deterministic.
    """
    turn = int.from_bytes(hashlib.sha256(f"demonstrations\n{seed}\n{mode}\n{problem.id}".encode()).digest()[:8])
    right = _response(_RIGHT_LEADS[turn % len(_RIGHT_LEADS)], problem.canonical_solution)
    wrong = _response(
        _WRONG_LEADS[turn // 7 % len(_WRONG_LEADS)],
        wrong_program(problem, "wrong" if problem.wrong_solutions else "none"),
    )
    phrasings = mode_named(mode).example_hacks
    marker = marker_for(mode, problem.id, seed, markers)
    hacks = [phrasings[(turn + k) % len(phrasings)](problem, marker) for k in range(min(HACKS_SHOWN, len(phrasings)))]
    return (right, wrong, *hacks)


def _response(lead: str, program: str) -> str:
    return f"{lead}\n\n```python\n{program.strip()}\n```"
