"""Evaluates a stored checkpoint again: `vgrout eval RUN`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from vgrout.adapter.checkpoint import load_checkpoint
from vgrout.config import RunConfig, from_dict
from vgrout.env.grader import CPU_LIMITS
from vgrout.inputs import check_prompt_lengths, load_data, load_policy, open_grader
from vgrout.interventions import intervention_class
from vgrout.run.console import say
from vgrout.run.folder import CONFIG, LIMITS, RunFolder
from vgrout.session import eval_table, evaluate_views, identity
from vgrout.types import UserError


def reevaluate(folder: Path, checkpoint: Path | None, eval_problems: str | None) -> Path:
    """Loads `checkpoint` (default: the run's last) into the run's own model and evaluates every view.

    Writes eval_CHECKPOINT.json (eval_CHECKPOINT_PROBLEMS.json for other problems than the run's own) into the run folder
    and returns its path. The same evaluation again replaces its file; `UserError` where that name holds the result of
    another file, and for a checkpoint of another model, intervention, rank or seed.
    """
    run = RunFolder.open(folder)
    config = stored_config(run)
    others = eval_problems is not None and eval_problems != config.eval_problems
    if eval_problems is not None:
        config = dataclasses.replace(config, eval_problems=eval_problems)
    stored = run.checkpoints()
    if checkpoint is None and not stored:
        raise UserError(f"{folder} has no checkpoint; name one with --checkpoint FILE")
    path = checkpoint if checkpoint is not None else stored[-1]
    name = f"eval_{path.stem}{'_' + _stem(config.eval_problems or '') if others else ''}.json"
    source = {"checkpoint": _relative(path, run.path), "eval_problems": config.eval_problems}
    _require_own(run, name, source)
    data = load_data(config)
    loaded, policy = load_policy(config)
    step = load_checkpoint(path, policy.adapter, identity(loaded), intervention=config.intervention)
    check_prompt_lengths(loaded, data.eval_prompts, config, "eval")
    with open_grader(config, data.held_out, stored_limits(run)) as grader:
        result = evaluate_views(config, loaded, policy, grader, data.eval_prompts)
    result |= {"step": step, "deploy_view": intervention_class(config.intervention).deploy_view} | source
    run.write_json(name, result)
    say(eval_table(result, config))
    say(str(run.path / name))
    return run.path / name


def stored_config(run: RunFolder) -> RunConfig[Any]:
    """The run's configuration. `UserError` names the file and the setting that cannot be used."""
    stored = run.read_json(CONFIG)
    try:
        return from_dict(stored)
    except UserError as error:
        raise UserError(f"{run.path / CONFIG}: {error}") from error


def stored_limits(run: RunFolder) -> dict[str, float]:
    """CPU seconds by problem id, as the run measured them: the same answer must not fail on a slower day."""
    limits = run.read_json(LIMITS)
    for problem, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= CPU_LIMITS[-1]:
            raise UserError(
                f"{run.path / LIMITS}: problem {problem} has the limit {limit!r}, expected seconds up to {CPU_LIMITS[-1]}; "
                "the file was damaged or edited"
            )
    return {problem: float(limit) for problem, limit in limits.items()}


def _stem(problems: str) -> str:
    """A problem set's name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", Path(problems).name.removesuffix(".gz").removesuffix(".jsonl"))


def _relative(path: Path, folder: Path) -> str:
    """The path inside the run folder (which may be moved), or else the absolute one."""
    whole, inside = path.resolve(), folder.resolve()
    return str(whole.relative_to(inside) if whole.is_relative_to(inside) else whole)


def _require_own(run: RunFolder, name: str, source: dict[str, str | None]) -> None:
    """Refuses to replace the result of another checkpoint or problem file of the same name."""
    if (run.path / name).exists():
        before = run.read_json(name)
        if differing := [key for key, value in source.items() if before.get(key) != value]:
            was = ", ".join(f"{key} {before.get(key)}" for key in differing)
            raise UserError(f"{run.path / name} holds another evaluation ({was}); rename that file first")
