"""The decode loop: many rows in one left-padded batch, each prompt prefilled once, finished rows dropped.

Transformers' `generate` prefills a prompt once per row and keeps paying for rows that have ended; this loop does neither.
Random draws belong to the row (`draw.py`), so splitting a batch changes a row only by floating-point rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from vgrout.rollout.attention import grouped_attention
from vgrout.rollout.base import Progress, SamplingParams
from vgrout.rollout.cache import RowCache, closed_up
from vgrout.rollout.draw import draw, uniform_draws
from vgrout.types import UserError, View


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled tokens of one row, the end token included where it was produced."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    """Log-probability of each token under softmax(logits / T) over the whole vocabulary (T = 1 when greedy)."""
    finished: bool
    """True if it ended with a stop token, False if it was cut at max_new."""


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    params: SamplingParams,
    stop: frozenset[int],
    *,
    views: Sequence[View] | None = None,
    select: Callable[[Sequence[View]], None] | None = None,
    max_rows: int | None = None,
    on_finish: Callable[[int, Completion], None] | None = None,
    progress: Progress | None = None,
) -> list[Completion]:
    """Sample one completion for each prompt (token ids); equal prompts in the same view share their prefill.

    `views[i]` is the view of row i, and `select` is told the views of a batch's rows before they are run (None: the model
    is the same for all). `seeds[i]` alone decides the draws of row i. At most `max_rows` rows are decoded together (None: all). `on_finish`
    is called with (row, completion) when a row ends. Raises UserError where prompt + max_new exceed the model's
    positions or the cache does not fit into the device's memory.
    """
    check_positions(model, max(map(len, prompts), default=0), params.max_new)
    done: dict[int, Completion] = {}
    of_rows: Sequence[View] = ["full"] * len(prompts) if views is None else views
    keys: list[Key] = [(tuple(prompt), view) for prompt, view in zip(prompts, of_rows, strict=True)]
    choose = select or _no_choice

    def finish(row: int, completion: Completion) -> None:
        done[row] = completion
        if on_finish is not None:
            on_finish(row, completion)

    sampled = 0

    def advance(tokens: int, alive: int) -> None:
        nonlocal sampled
        sampled += tokens
        if progress is not None:
            progress(sampled, alive)

    with _eval_mode(model), grouped_attention(model):
        for rows in batches(keys, max_rows):
            try:
                _decode_batch(model, rows, keys, choose, seeds, params, stop, finish, advance)
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(
                    f"decoding {len(rows)} rows of up to {params.max_new} new tokens does not fit into the memory of "
                    f"{model.device}: set max_rows below {len(rows)}"
                ) from error
    return [done[row] for row in range(len(prompts))]


Key = tuple[tuple[int, ...], View]
"""A row's prompt and its view: what its prefill depends on."""


def _no_choice(views: Sequence[View]) -> None:
    """For models that are the same in every view."""


def batches(keys: Sequence[Key], max_rows: int | None) -> list[list[int]]:
    """Rows that are decoded together: all, or at most `max_rows`, with equal prompts and similar lengths adjacent."""
    rows = sorted(range(len(keys)), key=lambda row: (len(keys[row][0]), *keys[row], row))
    size = max_rows or max(len(rows), 1)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@torch.inference_mode()
def _decode_batch(
    model: PreTrainedModel,
    rows: list[int],
    keys: Sequence[Key],
    choose: Callable[[Sequence[View]], None],
    seeds: Sequence[int],
    params: SamplingParams,
    stop: frozenset[int],
    finish: Callable[[int, Completion], None],
    advance: Callable[[int, int], None],
) -> None:
    """Decode `rows` (indices into keys) to their ends; `advance` hears (new tokens, rows alive) after each step."""
    cache, logits, mask, positions = _prefill(model, [keys[row] for row in rows], choose, params.max_new)
    width = mask.shape[1] - params.max_new
    uniforms = uniform_draws([seeds[row] for row in rows], params.max_new).to(model.device)
    ids: dict[int, list[int]] = {row: [] for row in rows}
    logps: dict[int, list[float]] = {row: [] for row in rows}
    slots = list(rows)  # slot of the batch -> row
    for step in range(params.max_new):
        tokens, token_logps = draw(logits, uniforms[:, step], params)
        alive = []
        for row, token, logp in zip(slots, tokens.tolist(), token_logps.tolist()):
            if not math.isfinite(logp):
                raise FloatingPointError(f"row {row}, token {step}: the model's log-probabilities are not finite")
            ids[row].append(token)
            logps[row].append(logp)
            ended = token in stop
            alive.append(not ended and step + 1 < params.max_new)
            if not alive[-1]:
                finish(row, Completion(tuple(ids.pop(row)), tuple(logps.pop(row)), ended))
        advance(len(slots), sum(alive))
        if not any(alive):
            break
        if not all(alive):
            order = closed_up(alive)
            cache.keep(order, model.device)
            index = torch.tensor(order, device=model.device)
            slots = [slots[slot] for slot in order]
            choose([keys[row][1] for row in slots])
            tokens, uniforms, mask, positions = (state[index] for state in (tokens, uniforms, mask, positions))
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask[:, : width + step + 1],
            position_ids=(positions + step)[:, None],
            past_key_values=cache.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


def _prefill(
    model: PreTrainedModel, keys: Sequence[Key], choose: Callable[[Sequence[View]], None], max_new: int
) -> tuple[RowCache, Float[Tensor, "R V"], Int[Tensor, "R L"], Int[Tensor, " R"]]:
    """Run each distinct key once; returns cache, last logits, mask (room for max_new) and next positions by row.

    Afterwards the views chosen are those of the rows.
    """
    distinct = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    lengths = torch.tensor([len(prompt) for prompt, _ in distinct])
    choose([view for _, view in distinct])
    width = int(lengths.max())
    # What stands in the padding is masked everywhere; id 0 exists in every vocabulary.
    padded = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt, _ in distinct]).to(model.device)
    mask = (torch.arange(width + max_new) >= (width - lengths)[:, None]).long().to(model.device)
    positions = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)
    cache = RowCache(model)
    logits = model(
        input_ids=padded,
        attention_mask=mask[:, :width],
        position_ids=positions,
        past_key_values=cache.cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    owner = torch.tensor([distinct[key] for key in keys], device=model.device)
    choose([view for _, view in keys])
    cache.repeat(owner, capacity=width + max_new)
    return cache, logits[owner], mask[owner], lengths.to(model.device)[owner]


def check_positions(model: PreTrainedModel, longest: int, max_new: int, option: str = "max_new") -> None:
    """UserError where the longest prompt's tokens and `max_new` more exceed the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest + max_new > limit:
        raise UserError(
            f"a prompt of {longest} tokens and {option} {max_new} exceed the model's {limit} positions: "
            f"lower {option} or drop that problem"
        )


@contextmanager
def _eval_mode(model: PreTrainedModel) -> Generator[None]:
    """Eval mode inside: under gradient checkpointing a model in training mode ignores its cache."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
