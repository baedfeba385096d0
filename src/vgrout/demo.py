"""`vgrout demo`: the main job on what ships with the package, with plain words around its table."""

from __future__ import annotations

from typing import Any

from vgrout.config import RunConfig
from vgrout.run.console import say
from vgrout.run.folder import RunFolder
from vgrout.train import train


def demo(config: RunConfig[Any]) -> None:
    """Trains, evaluates, and says in one closing line what was achieved and where it lies."""
    say(
        "A tiny Qwen3 with random weights trains on the built-in problems. It cannot program, so it is not expected to "
        "solve or to hack: half of each group are stored answers (right, wrong and hacking), and what the run shows is "
        "the whole job, with the log-probability of those answers (lp_t) rising."
    )
    run = RunFolder.open(train(config))
    lp = [row.values["lp_teacher"] for row in run.metrics() if row.values["lp_teacher"] is not None]
    changed = (
        f"the teacher answers' mean token log-prob went from {lp[0]:.2f} to {lp[-1]:.2f} nats"
        if lp
        else "no teacher rows"
    )
    say(f"demo finished: {config.steps} steps of {config.intervention}, {changed}; everything is in {run.path}")
