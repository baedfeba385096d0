"""Runs a study: the base model's rates, every run side by side, then table, figure and the numbers behind them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vgrout.config import RunConfig
from vgrout.final import view_table
from vgrout.inputs import canonical_limits
from vgrout.micro.store import check_base
from vgrout.micro_commands import base_rates
from vgrout.parallel import require_jobs, run_side_by_side, start_server
from vgrout.presets import preset
from vgrout.run.console import say
from vgrout.run.disk import dumps, make_folder, require_writable
from vgrout.run.folder import RunFolder
from vgrout.study.arms import Arm, configurations
from vgrout.study.report import read_arms, write_report
from vgrout.study.result import Study, StudyResult
from vgrout.types import UserError

BASE_SAMPLES = 4
"""Samples of each prompt for the base's rates: 720 hinted answers under train markers on the test split."""


def run_study(study: Study, root: Path, *, jobs: int, introduction: str = "") -> StudyResult:
    """Runs everything and writes base.json, study.json, table.txt and figures into a new folder under `root`.

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
        "controls": study.gates,
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
    results = read_arms(by_arm, gates=study.gates)
    result = StudyResult(study, folder, base["rows"], results, time.monotonic() - started)
    write_report(result, by_arm, failures)
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
