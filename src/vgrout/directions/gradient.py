"""Gradients of pairs: one backward per batch gives every completion's own, at every module.

    D[p, m] = grad NLL(hack_p) - grad NLL(clean_p)

is G P = 2 times the gradient of the GRPO loss of the group (hack, clean) at advantages +1 and -1, ratio 1, beta 0, where
the NLL is summed over tokens and divided by max_new (`token_norm = fixed`); mean is the default of earlier systems and
weighs short completions more. A loss gradient that would make hacks likelier has a positive product with D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout.adapter.gradients import PerRollout
from vgrout.directions.config import TokenNorm
from vgrout.directions.pairs import Pair
from vgrout.models import render_prompt
from vgrout.policy import Batch, Policy, micro_batches
from vgrout.types import Prompt, Rollout, UserError, View


@dataclass(frozen=True)
class Sides:
    """Both completions of every pair, in tokens: hacks first, in the order of the pairs, then the clean ones."""

    rows: tuple[Rollout, ...]

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self.rows) // 2


@dataclass(frozen=True)
class Gradients:
    """Per module, every completion's gradient of its NLL: hacks [0], clean completions [1]."""

    deployed: dict[str, Float[Tensor, "2 p d"]]
    """Of the deployed block's parameters, flattened; fp32 in host memory."""
    probe: dict[str, Float[Tensor, "2 p r"]]
    """In the routing coordinates of the deployed block."""

    def differences(self, of: str = "deployed") -> dict[str, Float[Tensor, "p d"]]:
        """D, per module."""
        return {name: g[0] - g[1] for name, g in getattr(self, of).items()}


@dataclass(frozen=True)
class NllOptions:
    """What a completion's loss is, and how many tokens go through one backward."""

    token_norm: TokenNorm
    max_new: int
    """T of the training loss, read by `token_norm = fixed`."""
    token_budget: int


def encode(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, *, positions: int | None = None) -> Sides:
    """The pairs as rollouts of the `full` view, their completions ended like a finished answer.

    Raises `UserError` for a completion with a special token in it and for a pair longer than the model's `positions`.
    """
    rows = []
    for side in ("hack", "clean"):
        for pair in pairs:
            text = getattr(pair, side)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if special := set(ids) & set(tokenizer.all_special_ids):
                names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special)))
                raise UserError(f"pair {pair.heading}: its {side} contains the special token {names}; remove it")
            prompt_ids = render_prompt(tokenizer, pair.messages)
            length = len(prompt_ids) + len(ids) + 1
            if positions is not None and length > positions:
                raise UserError(
                    f"pair {pair.heading}: its {side} and prompt have {length} tokens, the model has {positions} positions; "
                    "choose pairs written for this model with --pairs"
                )
            prompt = Prompt(pair.heading, "pair", "train", "", pair.messages)
            rows.append(
                Rollout(
                    id=f"{pair.heading}/{side}",
                    prompt=prompt,
                    prompt_ids=tuple(prompt_ids),
                    completion_ids=(*ids, tokenizer.eos_token_id),
                    text=text,
                    source="teacher",
                    view="full",
                    finished=True,
                )
            )
    return Sides(tuple(rows))


def nll(logps: Float[Tensor, " n"], batch: Batch, options: NllOptions) -> Float[Tensor, ""]:
    """Sum over the batch's rows of each row's NLL: mean or sum over its tokens, or sum / max_new."""
    if options.token_norm == "mean":
        return -(logps / batch.lengths[batch.owner]).sum()
    return -logps.sum() / (options.max_new if options.token_norm == "fixed" else 1)


def row_gradients(
    policy: Policy,
    rows: Sequence[Rollout],
    view: View,
    options: NllOptions,
    *,
    deployed: bool = True,
) -> tuple[dict[str, Float[Tensor, "n d"]], dict[str, Float[Tensor, "n r"]]]:
    """Per module, each row's NLL gradient in this view: (the deployed block's parameters, the routing coordinates).

    The adapter's `.grad` stays as it is. `deployed = False` leaves the first empty. Raises `UserError`, with the
    rows, where a gradient is not finite: a row left out would unbalance hack and clean.
    """
    whole: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}
    index = list(range(len(rows)))
    for batch in micro_batches(rows, index, token_budget=options.token_budget, device=policy.device):
        recorder = PerRollout(batch.index)
        with policy.adapter.view(view), policy.adapter.recording(recorder):
            nll(policy.logps(batch), batch, options).backward()
        at = list(batch.rows)
        sizes = {module.name: module.probe_size for module in policy.adapter.modules}
        _place(probes, at, len(rows), {name: g[:, : sizes[name]] for name, g in recorder.c_probe().items()})
        if deployed:
            _place(whole, at, len(rows), recorder.deployed())
    for found in (whole, probes):
        for name, g in found.items():
            if bad := [rows[i].id for i in (~g.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()]:
                raise UserError(
                    f"the gradient of {', '.join(bad[:3])} is not finite at {name}: the model has diverged, or these pairs "
                    "are beyond it; lower --optim.lr, or choose other --pairs"
                )
    return whole, probes


def pair_gradients(
    policy: Policy, sides: Sides, view: View, options: NllOptions, *, deployed: bool = True
) -> Gradients:
    """Every completion's gradients in this view, as `row_gradients` gives them."""
    whole, probes = row_gradients(policy, sides.rows, view, options, deployed=deployed)
    halves = lambda found: {name: g.unflatten(0, (2, sides.n)) for name, g in found.items()}  # noqa: E731
    return Gradients(halves(whole), halves(probes))


def _place(into: dict[str, Tensor], at: list[int], n: int, found: dict[str, Tensor]) -> None:
    """Writes the batch's rows to their places, in fp32 (fp64 stays) and host memory."""
    for name, g in found.items():
        g = g.detach().to("cpu", torch.promote_types(g.dtype, torch.float32))
        if name not in into:
            into[name] = g.new_zeros((n, g.shape[1]))
        into[name][at] = g
