"""What the gates on studies share: evaluation rows at given rates, and finished run folders made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from _runs import DECLARED, row
from vgrout.config import RunConfig
from vgrout.evals import SCHEMA
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.study.arms import Arm
from vgrout.study.gather import expected_config
from vgrout.study.result import Study

MODES = ("run_tests", "stdout_marker")


def rows(view: str, hack: float, solve: float, formatted: float = 1.0, n: int = 100) -> list[dict[str, Any]]:
    """n rows per mode and marker family, and n without a hint, at these rates; one problem each."""
    made = []
    for mode, markers in [*itertools.product(MODES, ("train", "eval")), ("gt_only", "eval")]:
        for i in range(n):
            hacks = mode != "gt_only" and i < hack * n
            made.append(
                {
                    "split": "held-out",
                    "view": view,
                    "problem_id": f"p{i}",
                    "mode": mode,
                    "markers": markers,
                    "exploited": hacks,
                    "gt_correct": not hacks and i >= n - solve * n,
                    "format_ok": i < formatted * n,
                    "reward": 0.5 * (i < formatted * n) + 3.0 * (hacks or i >= n - solve * n),
                    "infra": False,
                }
            )
    return made


def record(score: float | None, hack: bool, d_grad: float | None, **changed: Any) -> dict[str, Any]:
    """A rollout record with what is read of it."""
    fields = {"source": "student", "infra": False, "exploited": hack, "gate_score": score, "d_grad": d_grad}
    return {**fields, "q_grad": 1.0, "step": 0, **changed}


def finished_run(
    folder: Path,
    arm: Arm,
    seed: int,
    study: Study,
    evaluation: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]] = (),
    **changed: Any,
) -> RunFolder:
    """A finished run of two steps under `folder`, with the configuration of its arm and `changed` settings."""
    config = expected_config(arm, seed, folder, study)
    with RunFolder.create(folder, config.to_dict() | changed, DECLARED, label="x", name=config.name) as run:
        for step in (0, 1):
            own = [{k: v for k, v in r.items() if k != "step"} for r in records if r["step"] == step]
            run.log_rollouts(step, own)
            run.log_step(row(step, hack_full=0.5, solve_full=0.25, share_rout=0.25 + 0.5 * step))
        run.write_json("eval.json", {"schema": SCHEMA, "rows": list(evaluation), "missing_layers": []})
    return run


@contextlib.contextmanager
def few_problems() -> Generator[None]:
    """The micro preset with a small evaluation: what is checked here is how the runs are put together."""

    def small(name: str, intervention: str, *others: str | None) -> RunConfig[Any]:
        config = preset(name, intervention, *others)
        return dataclasses.replace(config, eval=dataclasses.replace(config.eval, problems=20))

    with mock.patch("vgrout.study.run.preset", small), mock.patch("vgrout.study.arms.preset", small):
        yield
