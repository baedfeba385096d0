"""What the gates on resuming share: a run per intervention that nobody disturbs, and what a resumption says."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from _kill import SHORT, Blow, attempt, moment, phases, require_equal, result

ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-resume-")
FOLDER = Path(ROOT.name)
ORACLE = ("--allow-oracle",)
CASES: dict[str, tuple[str, ...]] = {
    "none": ("--extraction.measure",),
    "none_full": (),
    "erase": ("--direction", "haar:1"),
    "absorb": ("--eval.curve-every", "2", "--eval.curve-problems", "2"),
    "label_route": ORACLE,
    "routeV": ("--routeV.edges", "live"),
    "routeA": ("--direction", "shuffled:1"),
    "moe": ("--direction", "random_label", "--moe.soft", "published"),
    "advantage_mod": ("--direction", "haar:2"),
    "penalty": ORACLE,
    "screening": ORACLE,
}
"""Every intervention, with placebo draws, live edges and a curve among them."""
KINDS = (
    "generate",
    "grade",
    "observe",
    "update",
    "direction",
    "anchors",
    "checkpoint",
    "write",
    "between steps",
    "evaluate",
)
"""Phases of a step, the write of a state between temporary and rename, and the final evaluation."""


def arguments(case: str, name: str) -> list[str]:
    return ["train", "smoke", "--intervention", case, *CASES[case], *SHORT, "--out", str(FOLDER), "--name", name]


def folder(name: str) -> Path:
    return FOLDER / "runs" / name


def log(name: str) -> Path:
    return FOLDER / f"{name}.log"


@cache
def unbroken(case: str) -> tuple[dict[str, Any], dict[tuple[str, int], float]]:
    """The result of a run that nobody disturbs, and how long its phases took."""
    name = f"{case}-unbroken"
    code, lasted = phases(arguments(case, name), log(name))
    assert code == 0, log(name).read_text()[-2000:]
    return result(folder(name)), lasted


def resume(name: str, *options: str) -> int:
    return attempt(["train", "--resume", str(folder(name)), *options], log(name))


def survives(case: str, name: str, blow: Blow) -> None:
    """The run is struck, resumed, and comes to the same end."""
    blow = struck(case, name, blow)
    assert resume(name) == 0, f"{case} {blow}: {log(name).read_text()[-3000:]}"
    require_equal(result(folder(name)), unbroken(case)[0], f"{case} {blow}")


def struck(case: str, name: str, blow: Blow) -> Blow:
    """The blow that ended the run. One that comes after the run has finished, as this one was faster than the one that was
    timed, is tried again earlier."""
    for _ in range(5):
        code = attempt(arguments(case, name), log(name), blow)
        if json.loads((folder(name) / "status.json").read_text())["state"] != "finished":
            assert code == -blow.number, f"{case} {blow}: ended with {code}: {log(name).read_text()[-2000:]}"
            return blow
        shutil.rmtree(folder(name))
        blow = replace(blow, after=blow.after / 2)
    raise AssertionError(f"{case}: finished each time before {blow}")


def refusal(name: str, *options: str) -> str:
    """What a resumption that must be refused says, in one line."""
    before = log(name).stat().st_size
    code = resume(name, *options)
    text = log(name).read_text()[before:]
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in text, (code, text)
    return lines[0]


def ten_kills(cases: Sequence[str]) -> str:
    """Ten runs, one killed in each phase, every one of the cases among them; all must come to the unbroken one's end."""
    for n, phase in enumerate(KINDS):
        case = cases[n % len(cases)]
        lasted = unbroken(case)[1]
        blow = Blow("write", 1 + n % 2) if phase == "write" else moment(lasted, phase, n)
        survives(case, f"kill{n}", blow)
    return f"{len(KINDS)} kills, {len(set(cases))} interventions, {len(KINDS)} phases"
