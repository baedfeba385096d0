"""The inputs of a run, built and checked: problems and prompts, model and adapter, grader, samplers.

Each function raises `UserError` for a mistake in its part of the configuration; nothing here writes anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from loguru import logger

from vgrout.adapter import attach
from vgrout.config import RunConfig
from vgrout.env.demonstrations import demonstrations
from vgrout.env.draw import Draw
from vgrout.env.grader import Grader
from vgrout.env.partition import make_partition
from vgrout.env.problems import assert_disjoint, builtin_split, load_problems, statement
from vgrout.evals import HELD_OUT, Asked
from vgrout.micro.problems import micro_split
from vgrout.models import LoadedModel, load_model, render_prompt
from vgrout.policy import Policy
from vgrout.rollout.base import GroupPlan, GroupSampler, SamplingParams
from vgrout.rollout.decode import check_positions
from vgrout.rollout.hf import HFSampler
from vgrout.rollout.pool import PoolSampler
from vgrout.run.progress import Progress
from vgrout.splits import Data, choose, curve_of, prompts_of, train_part
from vgrout.types import Problem, Prompt, UserError


def load_data(config: RunConfig[Any]) -> Data:
    """Loads and checks problems, their partition over modes, and the prompts. No problem is in two splits."""
    e, modes = config.eval, config.env.modes
    train = _training_problems(config.problems)
    held_out = _held_out_problems(config.eval_problems or (config.problems if config.problems in SETS else "builtin"))
    chosen, source = _curve_problems(config, train)
    if source == FROM_TRAINING:
        train = tuple(problem for problem in train if problem not in chosen)
    assert_disjoint(training=train, evaluation=held_out, curve=chosen)
    held_out = held_out[: e.problems]
    draw = Draw(
        train,
        make_partition([p.id for p in train], modes, config.seed),
        prompts_per_step=config.grpo.prompts_per_step,
        unhackable_frac=config.env.unhackable_frac,
        markers="train",
        seed=config.seed,
        inoculation=config.env.inoculation,
    )
    partition = make_partition([p.id for p in held_out], e.modes or modes, e.seed)
    prompts = prompts_of(held_out, partition, e.markers, e.seed, free=e.free_prompts)
    count = len(held_out) if e.train_problems is None else e.train_problems
    final = (Asked(HELD_OUT, prompts, e.views), train_part(draw, count, e.views, e.seed))
    curve = curve_of(chosen, source, e.modes or modes, e.seed) if chosen else None
    return Data(train, held_out, draw, partition, final, curve)


SETS: dict[str, Callable[[], tuple[tuple[Problem, ...], tuple[Problem, ...]]]] = {
    "builtin": builtin_split,
    "micro": micro_split,
    "micro:validation": partial(micro_split, "validation"),
    "micro:test": partial(micro_split, "test"),
}
"""Problem sets that ship with the package: (train, held out)."""
VALIDATION_SETS = dict.fromkeys(("micro", "micro:test", "micro:validation"), "micro:validation")
"""Of training problems that have a validation split of their own: its name."""
FROM_TRAINING = "held out of the training problems"


def _training_problems(name: str) -> tuple[Problem, ...]:
    return SETS[name]()[0] if name in SETS else load_problems(name)


def _held_out_problems(name: str) -> tuple[Problem, ...]:
    return SETS[name]()[1] if name in SETS else load_problems(name)


def _curve_problems(config: RunConfig[Any], train: Sequence[Problem]) -> tuple[tuple[Problem, ...], str]:
    """(problems of the curve, where they come from); none where no curve is asked for."""
    e = config.eval
    if e.curve_every is None:
        return (), ""
    name = e.curve_set or VALIDATION_SETS.get(config.problems)
    if name is not None and name == config.eval_problems:
        raise UserError(
            f"the curve's problems would be those of the final evaluation, {name}: name others with --eval.curve-set or "
            "--eval-problems"
        )
    available = _unlike_any_other(train) if name is None else _held_out_problems(name)
    count = min(e.curve_problems, len(train) // 5) if name is None else e.curve_problems
    if count < 1:
        raise UserError(
            f"--eval.curve-every: of {len(train)} training problems none can be held out (at most a fifth is); name a set "
            "or file of validation problems with --eval.curve-set"
        )
    return choose(available, count, seed=e.seed, purpose="curve"), FROM_TRAINING if name is None else f"of {name}"


def _unlike_any_other(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Those whose statement occurs once: a twin of any other would be trained on."""
    times = Counter(map(statement, problems))
    return tuple(problem for problem in problems if times[statement(problem)] == 1)


def load_policy(config: RunConfig[Any]) -> tuple[LoadedModel, Policy]:
    """The frozen model with a fresh adapter."""
    m = config.model
    if m.threads is not None:
        torch.set_num_threads(m.threads)
    loaded = load_model(m.name, dtype=m.dtype, device=m.device, seed=m.seed, revision=m.revision)
    adapter = attach(loaded.model, config.adapter)
    policy = Policy(
        loaded.model,
        adapter,
        temperature=config.rollout.temperature,
        chunk=config.grpo.logp_chunk,
        checkpoint_activations=config.grpo.checkpoint_activations,
    )
    return loaded, policy


@contextmanager
def open_grader(
    config: RunConfig[Any], problems: Sequence[Problem], limits: Mapping[str, float] | None = None
) -> Generator[Grader]:
    """A grader with the CPU limits of these problems: as `limits` has them, else measured on the canonical solutions."""
    env = config.env
    known = {p.id: limits[p.id] for p in problems if p.id in limits} if limits else {}
    with Grader(
        problems,
        workers=env.workers,
        allow_missing=env.sandbox_allow_missing,
        cpu_limits=known,
        namespaces=env.sandbox_namespaces,
    ) as grader:
        with Progress("checking canonical solutions", total=len(problems)) as bar:
            try:
                grader.measure_limits([p.id for p in problems], progress=lambda done, _: bar.update(done))
            except UserError as error:
                files = [name for name in (config.problems, config.eval_problems) if name and name not in SETS]
                raise UserError(f"{' or '.join(files) or 'built-in problems'}: {error}") from error
        yield grader


def canonical_limits(config: RunConfig[Any]) -> dict[str, float]:
    """CPU limits of all training and held-out problems, measured once for runs that share them."""
    data = load_data(config)
    with open_grader(config, data.problems) as grader:
        return grader.measure_limits()


def check_sampling(config: RunConfig[Any]) -> None:
    """UserError that names the sampling option of training or evaluation that is out of range."""
    training_params(config)
    evaluation_params(config)
    group_plan(config)


@contextmanager
def _options_of(section: str) -> Generator[None]:
    """Turns "max_new is 0: ..." into "--SECTION.max-new is 0: ...", so that a message names the option to change."""
    try:
        yield
    except UserError as error:
        name, _, rest = str(error).partition(" ")
        raise UserError(f"--{section}.{name.replace('_', '-')} {rest}") from error


def training_params(config: RunConfig[Any]) -> SamplingParams:
    """How the student's rollouts are drawn. UserError names the option that is out of range."""
    r = config.rollout
    with _options_of("rollout"):
        return SamplingParams(max_new=r.max_new, temperature=r.temperature, top_p=r.top_p, top_k=r.top_k)


def evaluation_params(config: RunConfig[Any]) -> SamplingParams:
    """How the evaluation's answers are drawn; they are as long as in training where nothing else is said."""
    e = config.eval
    with _options_of("eval"):
        max_new = config.rollout.max_new if e.max_new is None else e.max_new
        return SamplingParams(max_new=max_new, temperature=e.temperature, top_p=e.top_p)


def evaluation_sampler(config: RunConfig[Any], loaded: LoadedModel, policy: Policy) -> HFSampler:
    """The policy as a sampler with the evaluation's own seed, so that every evaluation draws the same numbers."""
    params, rows = evaluation_params(config), config.rollout.max_rows
    return HFSampler(loaded.model, loaded.tokenizer, policy.adapter, params, config.eval.seed, max_rows=rows)


def group_plan(config: RunConfig[Any]) -> GroupPlan:
    """How the rows of a group are made up. UserError names the option that is out of range."""
    r = config.rollout
    with _options_of("rollout"):
        return GroupPlan(
            group_size=config.grpo.group_size,
            rollout_ablate_frac=r.rollout_ablate_frac,
            mix_ratio=r.mix_ratio,
            teacher_off_step=r.teacher_off_step,
            teacher_modes=r.teacher_modes,
        )


def make_sampler(
    config: RunConfig[Any],
    loaded: LoadedModel,
    policy: Policy,
    data: Data,
    steps: Sequence[Sequence[Prompt]],
    *,
    routed: bool,
) -> GroupSampler:
    """The student, and the teacher pool where the preset mixes one in; every cell that will be asked for is covered."""
    plan, params = group_plan(config), training_params(config)
    rows = config.rollout.max_rows
    student = HFSampler(loaded.model, loaded.tokenizer, policy.adapter, params, config.seed, max_rows=rows)
    pool = None
    cells = sorted(
        {(p.problem_id, p.mode) for i, step in enumerate(steps) for p in step if plan.teacher_rows(p.mode, i)}
    )
    if cells:
        pool = PoolSampler(_pool_source(config, data, cells), loaded.tokenizer, config.seed)
        pool.require(cells)
    elif plan.wants_teacher():
        logger.warning("no prompt of this run is in a mode and step with teacher rows; all rows are the student's")
        plan = replace(plan, mix_ratio=0.0)
    return GroupSampler(student, pool, plan, deploy_view=routed)


def _pool_source(
    config: RunConfig[Any], data: Data, cells: Sequence[tuple[str, str]]
) -> Path | list[tuple[str, str, str]]:
    if config.rollout.pool != "demonstrations":
        return Path(config.rollout.pool)
    problems = {p.id: p for p in data.train}
    return [
        (problem, mode, response)
        for problem, mode in cells
        for response in demonstrations(problems[problem], mode, "train", config.seed)
    ]


def check_prompt_lengths(
    loaded: LoadedModel, prompts: Sequence[Prompt], config: RunConfig[Any], section: Literal["rollout", "eval"]
) -> None:
    """Refuses prompts above `max_prompt_tokens`: cutting or skipping them silently would change the problem set.

    Also refuses a `max_new` of that section of the configuration for which the model has too few positions.
    """
    limit = config.env.max_prompt_tokens
    lengths: dict[str, int] = {}
    for p in dict.fromkeys(prompts):  # one problem has several prompts: with its hint and without
        length = len(render_prompt(loaded.tokenizer, p.messages))
        lengths[p.problem_id] = max(length, lengths.get(p.problem_id, 0))
    if too_long := {problem: n for problem, n in lengths.items() if n > limit}:
        longest = max(too_long, key=lambda problem: too_long[problem])
        raise UserError(
            f"{len(too_long)} problems have prompts above {limit} tokens (the longest, {longest}, has {too_long[longest]}): "
            "raise --env.max-prompt-tokens or leave them out of the problem file"
        )
    params = training_params(config) if section == "rollout" else evaluation_params(config)
    check_positions(loaded.model, max(lengths.values(), default=0), params.max_new, f"--{section}.max-new")
