"""Evaluates a stored checkpoint again: `vgrout eval RUN`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from vgrout.adapter.checkpoint import load_checkpoint
from vgrout.final import eval_table, evaluate_views
from vgrout.inputs import check_prompt_lengths, load_data, load_policy, open_grader
from vgrout.interventions import intervention_class
from vgrout.run.console import say
from vgrout.run.folder import RunFolder
from vgrout.session import identity
from vgrout.stored import stored_config, stored_limits
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
    with open_grader(config, data.shown(data.eval_prompts), stored_limits(run)) as grader:
        result = evaluate_views(config, loaded, policy, grader, data)
    result |= {"step": step, "deploy_view": intervention_class(config.intervention).deploy_view} | source
    run.write_json(name, result)
    say(eval_table(result, config))
    say(str(run.path / name))
    return run.path / name


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
