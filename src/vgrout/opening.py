"""A run's session, built from its configuration in the order in which mistakes are cheapest to find.

The run folder is created last: problems, prompts, model, adapter, sandbox and teacher pool have been checked by then.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from vgrout.config import RunConfig
from vgrout.direction_inputs import chosen_pairs, measured_along, open_direction, require_use, wants_direction
from vgrout.directions.meter import Meter
from vgrout.env.grader import GRADER_VERSION, Grader
from vgrout.env.partition import save_partition
from vgrout.evals import FREE
from vgrout.final import marked
from vgrout.inputs import Data, check_prompt_lengths, check_sampling, load_data, load_policy, make_sampler, open_grader
from vgrout.interventions import intervention_class
from vgrout.measure import columns_of
from vgrout.optim import Optimizer
from vgrout.resume import Resumed, cut_logs, fingerprints
from vgrout.run.console import say
from vgrout.run.disk import require_writable
from vgrout.run.folder import LIMITS, RunFolder
from vgrout.run.generators import seed_generators
from vgrout.run.heartbeat import Heartbeat
from vgrout.run.table import StepTable
from vgrout.session import Session
from vgrout.tripwires import Anchors, Tripwires, anchor_texts
from vgrout.types import Interrupted


@contextmanager
def open_session(
    config: RunConfig[Any], limits: Mapping[str, float] | None = None, resumed: Resumed | None = None
) -> Generator[Session]:
    """Builds a run, or what a run is continued with. Raises `UserError` for bad input, and then leaves no run folder behind,
    or the one to continue as it was.

    `limits` are known CPU limits by problem id.
    """
    config.require_oracle_permission()
    check_sampling(config)
    if resumed is None:
        require_writable(config.out, config.name)
    seed_generators(config.seed)
    data = load_data(config)
    steps = [data.draw.prompts(step) for step in range(config.steps)]
    require_use(config)
    pairs = chosen_pairs(config, data.train) if wants_direction(config) else ()
    loaded, policy = load_policy(config)
    check_prompt_lengths(loaded, [p for step in steps for p in step], config, "rollout")
    check_prompt_lengths(loaded, data.eval_prompts, config, "eval")
    intervention = intervention_class(config.intervention)(config.settings, policy.adapter, config.seed)
    direction, record = open_direction(config, loaded, policy, pairs) if pairs else (None, None)
    intervention.prepare(direction)
    sampler = make_sampler(config, loaded, policy, data, steps, routed=intervention.routed)
    inputs = fingerprints(policy, data, sampler, direction)
    if resumed is not None:
        resumed.require_same(inputs)
    shown = {p.problem_id for step in steps for p in step} | {p.problem_id for p in data.eval_prompts}
    texts = anchor_texts(data.train, data.draw.all(FREE), loaded, config.tripwires.anchors)
    with (
        open_grader(config, [p for p in data.problems if p.id in shown], limits) as grader,
        _run_folder(config, data, grader, record, resumed) as run,
        Heartbeat(run.path) as heart,
    ):
        say(
            f"{config.preset} with {marked(config)}: {config.steps} steps of {config.grpo.prompts_per_step} prompts x "
            f"{config.grpo.group_size} rollouts on {len(data.train)} problems, model {loaded.name}{data.curve_words}"
        )
        session = Session(
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
            StepTable(run.columns),
            direction,
            Meter(policy.adapter, direction if measured_along(config) else None),
            inputs,
            heart,
            Tripwires(config.tripwires, config.model.dtype),
            Anchors(policy, texts, token_budget=config.grpo.token_budget),
        )
        if resumed is not None and resumed.state is not None:
            session.restore(resumed.state.content, resumed.updates)
            resumed.state.content.clear()  # or a copy of everything would be held to the end
        try:
            yield session
        except (Exception, KeyboardInterrupt) as error:
            raise session.explained(error) from error


@contextmanager
def _run_folder(
    config: RunConfig[Any], data: Data, grader: Grader, record: dict[str, Any] | None, resumed: Resumed | None
) -> Generator[RunFolder]:
    """The folder of a new run, or of the one that is continued, its logs taken back to its state."""
    folder = (
        resumed.run
        if resumed is not None
        else RunFolder.create(
            config.out,
            config.to_dict(),
            columns_of(config.env.modes),
            label=f"{config.preset}_{config.intervention}_seed{config.seed}",
            name=config.name,
            sandbox={
                "grader": GRADER_VERSION,
                "layers": grader.layers,
                "missing_layers": grader.missing_layers,
            },
        )
    )
    with folder as run:
        try:
            if resumed is not None:
                cut_logs(resumed, config, columns_of(config.env.modes))
            # Again in a resumed run: it may have been killed before it had written them.
            save_partition(run.path / "partition.json", data.draw.partition, modes=config.env.modes, seed=config.seed)
            run.write_json("partition_eval.json", data.eval_partition)
            run.write_json(LIMITS, grader.measure_limits())
            if record is not None:
                run.write_json("direction.json", record)
        except KeyboardInterrupt as error:
            raise Interrupted(f"before the first step; continue with `vgrout train --resume {run.path}`") from error
        yield run
