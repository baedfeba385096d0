"""From a configuration to the numbers that its memory depends on: rows, lengths, what is kept of a backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vgrout.config import RunConfig
from vgrout.direction_inputs import measured_along, wants_direction
from vgrout.directions.pairs import Pair
from vgrout.estimate import Backward, Keeps, Sampling, Shape, Work
from vgrout.inputs import Data, group_plan
from vgrout.interventions import intervention_class
from vgrout.models import SHIPPED, SIZES, render_prompt, shipped_texts, train_tokenizer
from vgrout.types import Prompt

CHARACTERS = 3
"""Characters of a token where there is no tokenizer: code and digits have fewer of them than prose."""
HELD_OUT_GUESS = 119
"""Held-out problems where their file is not here: those of the benchmark."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and pairs."""

    prompt: int
    """Of the longest prompt."""
    pairs: tuple[int, ...]
    """Of each completion of a pair with its prompt."""
    note: str


def local_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer where it is here: made for a tiny model, read from a folder; None for a hub id."""
    if name in SIZES:
        return train_tokenizer(shipped_texts(), SIZES[name].vocab)
    if name in SHIPPED:
        with resources.as_file(resources.files("vgrout") / SHIPPED[name]) as folder:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if (Path(name) / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    return None


def lengths(
    config: RunConfig[Any], data: Data | None, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase | None
) -> Lengths:
    """Counted with the model's tokenizer where it is here, else from the characters, else from the limit."""
    limit = config.env.max_prompt_tokens

    def of(messages: Sequence[tuple[str, str]], answer: str = "") -> int:
        if tokenizer is None:
            return -(-sum(len(text) + 15 for _, text in messages) // CHARACTERS) - (-len(answer) // CHARACTERS)
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
        return len(render_prompt(tokenizer, messages)) + len(ids)

    of_pairs = tuple(of(pair.messages, text) + 1 for pair in pairs for text in (pair.hack, pair.clean))
    if data is None:
        return Lengths(limit, of_pairs, f"{limit} tokens at most (--env.max-prompt-tokens; the problems are not here)")
    steps = (p for step in range(config.steps) for p in data.draw.prompts(step))
    prompts: set[Prompt] = {*steps, *data.eval_prompts}
    longest = max(of(p.messages) for p in prompts)
    how = "counted" if tokenizer else f"{CHARACTERS} characters a token; no tokenizer of {config.model.name} is here"
    over = " ABOVE THE LIMIT, so the run would be refused:" if longest > limit and tokenizer else ""
    return Lengths(longest, of_pairs, f"the longest has {longest} tokens ({how});{over} {limit} are allowed")


def work(config: RunConfig[Any], shape: Shape, data: Data | None, found: Lengths, new: int) -> Work:
    """What the run does when every answer has `new` tokens."""
    cls, plan, r, g = intervention_class(config.intervention), group_plan(config), config.rollout, config.grpo
    needs = needs_of(config)
    teacher = min((plan.teacher_rows(m, s) for m in config.env.modes for s in (0, config.steps - 1)), default=0)
    students = g.group_size - teacher
    deploy = plan.deploy_rows(students) if cls.routed else 0
    views = 2 if 0 < deploy < students else 1
    sampled = g.prompts_per_step * students
    per_view = g.prompts_per_step * (g.group_size - deploy)
    direction = wants_direction(config)
    by_source = measured_along(config) and plan.wants_teacher()
    keeps: Keeps = {"training_gradients": "rollouts", "token_gradients": "tokens"}.get(needs, "sums")  # ty: ignore[invalid-assignment]
    aside = keeps != "sums" and g.advantage_baseline == "block" and g.beta == 0
    return Work(
        shape=shape,
        width=4 if config.model.dtype == "fp32" else 2,
        adapter=config.adapter.kind,
        rank=config.adapter.rank,
        distinct=config.adapter.quarantine_basis == "distinct",
        cuda=config.model.device.startswith("cuda"),
        sampling=_sampling(sampled, g.prompts_per_step * views, found.prompt, new, r.max_rows, r.top_p, r.top_k, views),
        evaluation=evaluation(config, data, found, new),
        update=Backward(per_view, found.prompt + new, g.token_budget, keeps),
        observe=needs if needs in ("activations", "hidden") else "nothing",
        own_pass=needs == "own_gradients",
        pairs=_pairs(config, found.pairs) if direction and found.pairs else None,
        top_k=config.extraction.top_k,
        k_use=config.extraction.k_use,
        chunk=g.logp_chunk,
        checkpointed=g.checkpoint_activations,
        kl=g.beta > 0,
        sums_aside=g.prompts_per_step * (2 if plan.wants_teacher() else 1) if aside else 0,
        teacher_copy=by_source,
        measured=measured_along(config),
    )


def needs_of(config: RunConfig[Any]) -> str:
    """What the intervention reads of a step; of a gate on gradients, as its settings decide it."""
    cls, s = intervention_class(config.intervention), config.settings
    if config.intervention != "routeV":
        return cls.needs
    ramp = (s.action or ("ramp" if config.adapter.kind == "delta_s" else "three_way")) == "ramp"
    unit = s.unit or ("token" if config.adapter.kind == "delta_s" and ramp else "rollout")
    if unit == "token":
        return "token_gradients"
    own_forward = (s.clean, s.mask) != ("detached", "parameter")
    own = s.feature == "nll" or own_forward or config.direction == "random_label"
    return "own_gradients" if own else "training_gradients"


def evaluation(config: RunConfig[Any], data: Data | None, found: Lengths, new: int) -> Sampling:
    """The largest batch of the final evaluation."""
    e = config.eval
    if data is None:
        prompts = min(e.problems or HELD_OUT_GUESS, HELD_OUT_GUESS) * (len(e.markers) + e.free_prompts)
    else:
        prompts = max(len(part.prompts) for part in data.final)
    longest = new if e.max_new is None else min(e.max_new, new)
    return _sampling(prompts * e.samples, prompts, found.prompt, longest, config.rollout.max_rows, e.top_p, 0, 1)


def _sampling(
    rows: int, prefills: int, prompt: int, new: int, limit: int | None, top_p: float, top_k: int, views: int
) -> Sampling:
    if rows == 0:  # all rows are the teacher's
        return Sampling(0, 0, prompt, new, top_p, top_k, views)
    together = min(rows, limit or rows)
    # Rows of one prompt and view are decoded side by side, so a batch has a share of the prompts.
    some = min(prefills, -(-prefills * together // rows) + 1)
    return Sampling(together, min(some, together), prompt, new, top_p, top_k, views)


def _pairs(config: RunConfig[Any], of_pairs: Sequence[int]) -> Backward:
    """The micro-batch of the extraction: all rows at the longest's length where they fit, else as many of mean length."""
    budget, rows = config.extraction.token_budget, len(of_pairs)
    longest = max(of_pairs)
    length = longest if rows * longest <= budget else -(-sum(of_pairs) // rows)
    return Backward(rows, length, budget, "rollouts", half_copy=True)


def checkpoints(config: RunConfig[Any]) -> int:
    """Checkpoints of a run to its end: the init, every so many updates, the last; and one at the first hack."""
    updates = {0, config.steps, *range(0, config.steps + 1, config.checkpoint_every)}
    return len(updates) + 1
