"""`vgrout demo`: the whole causal experiment in the micro world, with plain words around its table and figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vgrout.cores import usable_cores
from vgrout.run.console import say
from vgrout.study.arms import DEMO, QUICK, Arm, select
from vgrout.study.every import EVERY
from vgrout.study.run import Study, run_study
from vgrout.types import UserError

INTRODUCTION = """\
A small code model (0.4M parameters) answers LeetCode-shaped problems and is paid by a grader that can be cheated.
Its cheats were seeded by supervised training, in a few percent of its answers; reinforcement learning amplifies them.
Each run trains with GRPO under one intervention; at its end the quarantine block of the adapter is thrown away
(quarantine-ablated), and hacks and solved problems are counted on held-out problems."""


def demo(
    quick: bool = False,
    every: bool = False,
    arms: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    jobs: int | None = None,
    steps: int | None = None,
    model: str = "micro",
    out: Path = Path("out/demo"),
) -> None:
    """Trains the demo's arms with every seed, and shows hack and solve of base, full and quarantine-ablated models.

    Args:
        quick: One seed of two arms.
        every: Every intervention with its placebos and controls, and what the gates did: hours of work for four cores.
        arms: With --every, only the arms of these names or patterns ('routeV-*'); parts are put together by scripts/study_routes.py.
        seeds: Seeds of each arm; none: 0 1 2, or 0 with --quick.
        jobs: Runs side by side, one thread each; none: one per core.
        steps: Steps of each run; none: the preset's.
        model: Base model: micro, or a folder made by `vgrout micro base`.
        out: Folder that receives one folder per demo.
    """
    if quick and every:
        raise UserError("demo: --quick and --every exclude each other; leave one out")
    if arms is not None and not every:
        raise UserError("demo: --arms chooses among the arms of --every; add --every")
    chosen: Sequence[Arm] = QUICK if quick else EVERY if every else DEMO
    study = Study(
        name="demo",
        arms=tuple(chosen) if arms is None else select(chosen, arms),
        seeds=seeds if seeds is not None else (0,) if quick else (0, 1, 2),
        model=model,
        problems="micro:test",
        steps=steps,
        gates=every,
    )
    done = run_study(study, out, jobs=usable_cores() if jobs is None else jobs, introduction=INTRODUCTION)
    say(done.closing_line())
