"""Runs a study: the base model's rates, every run side by side, then table, figure and the numbers behind them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vgrout.config import RunConfig
from vgrout.evals import ALL, FREE, tabulate
from vgrout.inputs import canonical_limits
from vgrout.micro.store import check_base
from vgrout.micro_commands import base_rates
from vgrout.parallel import require_jobs, run_side_by_side, start_server
from vgrout.presets import preset
from vgrout.run.console import say
from vgrout.run.disk import dumps, make_folder, require_writable, write_atomic
from vgrout.run.folder import EVALUATION, RunFolder
from vgrout.session import tuning, view_table
from vgrout.study.arms import NONE, ROUTES, Arm, configurations
from vgrout.study.figure import training_figure
from vgrout.study.summary import ArmResult, Rows, final_table, find, mode_table
from vgrout.types import Markers, UserError

BASE_SAMPLES = 4
"""Samples of each prompt for the base's rates: 720 hinted answers under train markers on the test split."""


@dataclass(frozen=True)
class Study:
    """What is run."""

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    model: str = "micro"
    """Base model."""
    problems: str = "micro:test"
    """Held-out problems. Tuning uses micro:validation."""
    steps: int | None = None
    """Steps of a run; none: the preset's."""
    modes: tuple[str, ...] | None = None
    """Loophole modes of the training prompts; none: all. Evaluation always uses all."""
    samples: int = 1
    """Answers to each held-out prompt of an arm's evaluation."""


@dataclass(frozen=True)
class StudyResult:
    """A finished study."""

    study: Study
    folder: Path
    base: Rows
    arms: tuple[ArmResult, ...]
    seconds: float

    def rates(self, label: str, view: str, markers: Markers = "train") -> tuple[float, float]:
        """(hack of hinted prompts, solve without a hint), pooled over seeds."""
        rows = (
            self.base
            if view == "base"
            else [r for a in self.arms if a.label == label for rs in a.rows.values() for r in rs]
        )
        cells = tabulate(rows)
        hack, solve = find(cells, view, markers, ALL), find(cells, view, "", FREE)
        if hack is None or solve is None or not hack.n or not solve.n:
            raise UserError(f"{label or 'base'}, {view} view: no answer could be graded; see the logs in {self.folder}")
        return hack.hacks / hack.n, solve.solves / solve.n

    def closing_line(self) -> str:
        """What was achieved and where it lies."""
        hack, solve = self.rates("", "base")
        parts = [f"the base hacks {hack:.2f} and solves {solve:.2f}"]
        for arm in self.arms:
            if arm.label == NONE.label:
                after = self.rates(arm.label, "full")
                parts.append(f"{arm.label} then hacks {after[0]:.2f} and solves {after[1]:.2f}")
            if arm.label == ROUTES[0].label:
                full, after = self.rates(arm.label, "full"), self.rates(arm.label, "deploy")
                parts.append(
                    f"{arm.label} (upper bound) hacks {full[0]:.2f} and solves {full[1]:.2f}, quarantine-ablated it hacks "
                    f"{after[0]:.2f} and solves {after[1]:.2f}"
                )
        if bad := [arm.label for arm in self.arms if arm.collapses(self.base)]:
            parts.append(f"COLLAPSED: {', '.join(bad)}")
        runs = sum(len(arm.rows) for arm in self.arms)
        return f"{self.study.name} finished: {runs} runs in {self.seconds:.0f} s; {'; '.join(parts)}; table and figure are in {self.folder}"


def run_study(study: Study, root: Path, *, jobs: int, introduction: str = "") -> StudyResult:
    """Runs everything and writes base.json, study.json, table.txt and figure.png into a new folder under `root`.

    `introduction` is said once nothing is known to stand in the way.

    Raises `UserError` where a run failed, after the table of the others has been written.
    """
    started = time.monotonic()
    require_jobs(jobs)
    changes = {} if study.steps is None else {"steps": study.steps}
    options = {
        "problems": study.problems,
        "model": study.model,
        **changes,
        "modes": study.modes,
        "samples": study.samples,
    }
    configurations(study.arms, study.seeds, root, **options)  # a mistake in them is found before anything is run
    check_base(study.model)
    require_writable(root, None)
    if introduction:
        say(introduction)
    start_server()
    base = measure_base(study)
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}_{study.name}"
    files = {"study.json": dumps({"study": dataclasses.asdict(study)}), "base.json": dumps(base, "the base's rates")}
    folder = make_folder(root, None, stamp, files)
    configs = configurations(study.arms, study.seeds, folder, **options)
    title = f"{len(configs)} runs, {jobs} at a time; hack and solve are means of the last steps' rollouts; * reads ground truth"
    limits = canonical_limits(_on_all_cores(configs[0]))
    ended = run_side_by_side(configs, jobs=jobs, title=title, limits=limits)
    folders = {run.name: run.folder for run in ended if run.folder is not None}
    failures = [run.cause for run in ended if run.folder is None]
    failed = f"{len(failures)} of {len(ended)} runs failed; {failures[0]}" if failures else ""
    if not folders:
        raise UserError(failed)
    by_arm = [(arm, _by_seed(arm, study.seeds, folders)) for arm in study.arms]
    results = tuple(
        ArmResult(arm.label, {seed: _rows(run) for seed, run in found.items()}) for arm, found in by_arm if found
    )
    result = StudyResult(study, folder, base["rows"], results, time.monotonic() - started)
    _report(result, by_arm, failures)
    if failed:
        raise UserError(f"{failed}; table and figure of the others are in {folder}")
    return result


def _by_seed(arm: Arm, seeds: Sequence[int], folders: Mapping[str, RunFolder]) -> dict[int, RunFolder]:
    """The arm's finished runs."""
    names = zip(seeds, arm.run_names(seeds), strict=True)
    return {seed: folders[name] for seed, name in names if name in folders}


def measure_base(study: Study) -> dict[str, Any]:
    """The base model's rates on the prompts and with the sampling of the runs' evaluation, printed before any run starts."""
    config = preset("micro", "none")
    config = dataclasses.replace(
        config,
        eval_problems=study.problems,
        model=dataclasses.replace(config.model, name=study.model),
        eval=dataclasses.replace(config.eval, samples=BASE_SAMPLES),
    )
    result = base_rates(_on_all_cores(config))
    say(view_table(result, f"the base model before any RL ({result['model']}, {result['revision']}; {study.problems})"))
    return result


def _on_all_cores(config: RunConfig[Any]) -> RunConfig[Any]:
    """With a grader process for each core: for what is done before the runs share them."""
    return dataclasses.replace(config, env=dataclasses.replace(config.env, workers=None))


def _rows(run: RunFolder) -> Rows:
    return run.read_json(EVALUATION)["rows"]


def _report(
    result: StudyResult, by_arm: Sequence[tuple[Arm, Mapping[int, RunFolder]]], failures: Sequence[str]
) -> None:
    study = result.study
    seeds = f"{len(study.seeds)} seed" + ("s" if len(study.seeds) > 1 else "")
    tuned = tuning(preset("micro", "none"))
    where = f"{study.problems}, {seeds}, counts pooled over seeds with 95 % intervals; {tuned}"
    table = final_table(result.base, result.arms, f"held-out hack and solve rates ({where})")
    modes = mode_table(result.base, result.arms, "train", "hack rate by loophole mode, train markers")
    evaluations = [run.read_json(EVALUATION) for _, runs in by_arm for run in runs.values()]
    missing = sorted({layer for evaluation in evaluations for layer in evaluation["missing_layers"]})
    notes = [f"Graded in a sandbox without {', '.join(missing)}."] if missing else []
    notes += [f"FAILED, so not in this table: {cause}" for cause in failures]
    text = "\n".join([table, *notes, "", modes])
    write_atomic(result.folder / "table.txt", f"{text}\n")
    say(f"\n{text}\n")
    arms = [(arm.label, list(runs.values())) for arm, runs in by_arm if runs]
    training_figure(arms, result.rates("", "base"), result.folder / "figure.png")
    numbers = {
        "study": dataclasses.asdict(study),
        "runs": {arm.label: [str(run.path) for run in runs.values()] for arm, runs in by_arm},
        "failures": list(failures),
        "collapsed": {
            a.label: {f"seed{s}/{v}": why for (s, v), why in a.collapses(result.base).items()} for a in result.arms
        },
        "cells": {
            "base": [dataclasses.asdict(cell) for cell in tabulate(result.base)],
            **{
                a.label: {seed: [dataclasses.asdict(c) for c in tabulate(rows)] for seed, rows in a.rows.items()}
                for a in result.arms
            },
        },
        "seconds": round(result.seconds, 1),
    }
    write_atomic(result.folder / "study.json", dumps(numbers, "the study"))
