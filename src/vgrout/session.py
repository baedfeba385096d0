"""Everything a run needs, built from its configuration in the order in which mistakes are cheapest to find.

The run folder is created last: problems, prompts, model, adapter, sandbox and teacher pool have been checked by then.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vgrout.adapter.checkpoint import CheckpointInfo, save_checkpoint
from vgrout.config import RunConfig
from vgrout.direction_inputs import chosen_pairs, open_direction, wants_direction
from vgrout.directions.live import LiveDirection
from vgrout.directions.meter import Meter
from vgrout.env.draw import Draw
from vgrout.env.grader import GRADER_VERSION, Grader
from vgrout.env.partition import save_partition
from vgrout.evals import collapsed, evaluate, tabulate
from vgrout.inputs import (
    SETS,
    Data,
    check_prompt_lengths,
    check_sampling,
    evaluation_params,
    load_data,
    load_policy,
    make_sampler,
    open_grader,
)
from vgrout.interventions import intervention_class
from vgrout.interventions.base import Intervention
from vgrout.measure import COLUMNS
from vgrout.models import LoadedModel
from vgrout.optim import Optimizer
from vgrout.policy import Policy
from vgrout.rollout.base import GroupSampler
from vgrout.rollout.hf import HFSampler
from vgrout.run.console import say
from vgrout.run.disk import require_writable
from vgrout.run.folder import LIMITS, RunFolder
from vgrout.run.table import StepTable, summary_table
from vgrout.types import Group, Prompt, Rollout, StepRow, UserError, Verdict, View


@dataclass
class Session:
    """A run's parts; `train.loop` reads them by these names."""

    config: RunConfig[Any]
    run: RunFolder
    loaded: LoadedModel
    policy: Policy
    intervention: Intervention
    optimizer: Optimizer
    draw: Draw
    sampler: GroupSampler
    grader: Grader
    data: Data
    table: StepTable
    direction: LiveDirection | None
    meter: Meter
    hacked: bool = False

    @property
    def max_new(self) -> int:
        return self.config.rollout.max_new

    def submit(self, rollout: Rollout) -> None:
        """Starts grading a finished rollout."""
        self.grader.submit(rollout.id, rollout.prompt, rollout.text)

    def collect(self, groups: Sequence[Group]) -> dict[str, Verdict]:
        """Waits for the verdicts of a step's rollouts."""
        ids = [r.id for group in groups for r in group.rollouts]
        return dict(zip(ids, self.grader.collect(ids), strict=True))

    def renew_direction(self, step: int) -> dict[str, float | None]:
        """Renews the direction where it is due; its columns of the metrics."""
        if self.direction is None:
            return {}
        self.direction.after_step(step)
        return self.direction.stats()

    def log(self, row: StepRow, records: list[dict[str, Any]]) -> None:
        """Rollouts first: a metrics line vouches for them."""
        self.run.log_rollouts(row.step, records)
        self.run.log_step(row)
        self.table.row(row)

    def checkpoint(self, updates: int, *, first_hack: bool = False) -> None:
        """Saves the init, every `checkpoint_every` updates, the end, and the first update after a student's hack was paid."""
        names: list[int | str] = []
        if updates % self.config.checkpoint_every == 0 or updates == self.config.steps:
            names.append(updates)
        if first_hack and not self.hacked:
            self.hacked = True
            names.append("first_hack")
        for name in names:
            path = self.run.checkpoint_path(name)
            save_checkpoint(
                path, self.policy.adapter, identity(self.loaded), step=updates, config=self.config.to_dict()
            )

    def require_moved(self) -> None:
        """The blocks that this intervention trains have moved, the others are exactly at their init."""
        for block in ("deployed", "quarantine"):
            moved = self.policy.adapter.block_norm(block, "moved")
            if moved == 0 and block in self.intervention.moves:
                raise UserError(
                    f"the {block} block has not moved in {self.config.steps} steps of {self.config.intervention}: no rollout "
                    "with a non-zero advantage reached it; mix in teacher rows (--rollout.mix-ratio) or use a model that "
                    f"earns rewards (see {self.run.path / 'metrics.jsonl'})"
                )
            if moved > 0 and block not in self.intervention.moves:
                raise RuntimeError(f"the {block} block has moved by {moved:.3g} under {self.config.intervention}")

    def final_evaluation(self) -> dict[str, Any]:
        """Evaluates every view on the held-out problems, writes eval.json and prints the table."""
        result = evaluate_views(self.config, self.loaded, self.policy, self.grader, self.data.eval_prompts)
        result |= {"step": self.config.steps, "deploy_view": self.intervention.deploy_view}
        self.run.write_json("eval.json", result)
        say(eval_table(result, self.config))
        return result


def identity(loaded: LoadedModel) -> CheckpointInfo:
    """What a checkpoint of this model must share with the run that loads it."""
    return CheckpointInfo(model=loaded.name, revision=loaded.revision or "none", dtype=loaded.dtype)


@contextmanager
def open_session(config: RunConfig[Any], limits: Mapping[str, float] | None = None) -> Generator[Session]:
    """Builds a run. Raises `UserError` for bad input, and then leaves no run folder behind.

    `limits` are known CPU limits by problem id.
    """
    config.require_oracle_permission()
    check_sampling(config)
    require_writable(config.out, config.name)
    torch.manual_seed(config.seed)
    data = load_data(config)
    steps = [data.draw.prompts(step) for step in range(config.steps)]
    pairs = chosen_pairs(config, data.train) if wants_direction(config) else ()
    loaded, policy = load_policy(config)
    check_prompt_lengths(loaded, [p for step in steps for p in step], config, "rollout")
    check_prompt_lengths(loaded, data.eval_prompts, config, "eval")
    intervention = intervention_class(config.intervention)(config.settings, policy.adapter, config.seed)
    direction, record = open_direction(config, loaded, policy, pairs) if pairs else (None, None)
    intervention.prepare(direction)
    sampler = make_sampler(config, loaded, policy, data, steps, routed=intervention.routed)
    shown = {p.problem_id for step in steps for p in step} | {p.problem_id for p in data.eval_prompts}
    with open_grader(config, [p for p in (*data.train, *data.held_out) if p.id in shown], limits) as grader:
        label = f"{config.preset}_{config.intervention}_seed{config.seed}"
        with RunFolder.create(
            config.out,
            config.to_dict(),
            COLUMNS,
            label=label,
            name=config.name,
            sandbox={"grader": GRADER_VERSION, "missing_layers": grader.missing_layers},
        ) as run:
            save_partition(run.path / "partition.json", data.draw.partition, modes=config.env.modes, seed=config.seed)
            run.write_json("partition_eval.json", data.eval_partition)
            run.write_json(LIMITS, grader.measure_limits())
            if record is not None:
                run.write_json("direction.json", record)
            say(
                f"{config.preset} with {marked(config)}: {config.steps} steps of {config.grpo.prompts_per_step} prompts x "
                f"{config.grpo.group_size} rollouts on {len(data.train)} problems, model {loaded.name}"
            )
            yield Session(
                config,
                run,
                loaded,
                policy,
                intervention,
                Optimizer(policy.adapter, config.optim),
                data.draw,
                sampler,
                grader,
                data,
                StepTable(COLUMNS),
                direction,
                Meter(policy.adapter, direction),
            )


def evaluate_views(
    config: RunConfig[Any], loaded: LoadedModel, policy: Policy, grader: Grader, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """The deploy evaluation of the adapter as it stands, in all views, with what its figures must be read with."""
    e, params = config.eval, evaluation_params(config)
    sampler = HFSampler(
        loaded.model, loaded.tokenizer, policy.adapter, params, e.seed, max_rows=config.rollout.max_rows
    )
    name = config.eval_problems or f"held-out part of {config.problems if config.problems in SETS else 'builtin'}"
    header = {
        "intervention": config.intervention,
        "upper_bound": config.upper_bound,
        "missing_layers": list(grader.missing_layers),
    }
    twins: dict[View, View] = {}
    if policy.adapter.block_norm("quarantine", "moved") == 0:
        twins["deploy"] = "full"  # there is nothing to ablate
    return evaluate(sampler, grader, prompts, e.views, samples=e.samples, sets=name, twins=twins) | header


def eval_table(result: dict[str, Any], config: RunConfig[Any]) -> str:
    """The final table; the view that ships is named in its title."""
    title = f"held-out evaluation ({result['problems']}) of {marked(config)}; {result['deploy_view']} ships"
    if config.oracle_tuned_on:
        title += f"; {tuning(config)}"
    return view_table(result, title)


def tuning(config: RunConfig[Any]) -> str:
    """The mark of settings that were tuned with the oracle's help; empty where they were not."""
    return f"oracle-tuned on {config.oracle_tuned_on}" if config.oracle_tuned_on else ""


def view_table(result: dict[str, Any], title: str) -> str:
    """The cells of an evaluation under a title; a flag for every view that has collapsed; what limits the figures."""
    cells = tabulate(result["rows"])
    notes = [f"COLLAPSED: {view} {why}; its hack rate says nothing" for view, why in collapsed(cells).items()]
    if result["samples"] > 1:
        notes.append(
            f"Intervals take the {result['samples']} answers to one prompt as independent, so they are too narrow."
        )
    if result["missing_layers"]:
        notes.append(f"Graded in a sandbox without {', '.join(result['missing_layers'])}.")
    return "\n".join([summary_table([cell.summary() for cell in cells], title), *notes])


def marked(config: RunConfig[Any]) -> str:
    """The intervention's name, with the mark that every output of an upper bound carries."""
    name = config.intervention + (f" [{config.design}]" if config.design else "")
    uses = intervention_class(config.intervention).needs_direction
    if config.direction != "real" and (uses or config.upper_bound):
        name += f" ({config.direction})"
    return name + (" (UPPER BOUND: reads ground truth)" if config.upper_bound else "")
