"""Evaluates a stored checkpoint again: `vgrout eval RUN`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vgrout.adapter.checkpoint import load_checkpoint
from vgrout.config import from_dict
from vgrout.inputs import check_prompt_lengths, load_data, load_policy, open_grader
from vgrout.interventions import intervention_class
from vgrout.run.console import say
from vgrout.run.folder import CONFIG, RunFolder
from vgrout.session import eval_table, evaluate_views, identity
from vgrout.types import UserError


def reevaluate(folder: Path, checkpoint: Path | None, eval_problems: str | None) -> Path:
    """Loads `checkpoint` (default: the run's last) into the run's own model and evaluates every view.

    Writes eval_CHECKPOINT.json into the run folder and returns its path. `UserError` for a checkpoint of another model,
    rank or seed.
    """
    run = RunFolder.open(folder)
    config = from_dict(run.read_json(CONFIG))
    if eval_problems is not None:
        config = dataclasses.replace(config, eval_problems=eval_problems)
    stored = run.checkpoints()
    if checkpoint is None and not stored:
        raise UserError(f"{folder} has no checkpoint; name one with --checkpoint FILE")
    path = checkpoint if checkpoint is not None else stored[-1]
    data = load_data(config)
    loaded, policy = load_policy(config)
    step = load_checkpoint(path, policy.adapter, identity(loaded))
    check_prompt_lengths(loaded, data.eval_prompts, config)
    with open_grader(config, data.held_out) as grader:
        result = evaluate_views(config, loaded, policy, grader, data.eval_prompts)
    result |= {
        "step": step,
        "checkpoint": str(path),
        "deploy_view": intervention_class(config.intervention).deploy_view,
    }
    name = f"eval_{path.stem}.json"
    run.write_json(name, result)
    say(eval_table(result, config))
    say(str(run.path / name))
    return run.path / name
