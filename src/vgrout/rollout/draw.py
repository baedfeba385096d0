"""Draw the next token of each row from its logits.

Random draws belong to the row, not to the batch: a row's uniform numbers come from its own seed, and its token is the
point where the cumulative distribution passes the number. Which other rows are in the batch therefore changes a row only
by floating-point rounding. torch's global generator is never used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vgrout.rollout.base import SamplingParams


def uniform_draws(seeds: Sequence[int], count: int) -> Float[Tensor, "R T"]:
    """`count` float64 numbers in [0, 1) for each seed, on the CPU so that they are the same on every device."""
    draws = [torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    # Kept off 1 so far that draw * total stays below total: the search then always ends on a possible token.
    return torch.stack(draws).clamp_(max=1 - 2**-40)


def draw(
    logits: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"], params: SamplingParams
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """The token of each row and its log-probability under softmax(logits / T) before top_k and top_p."""
    logps = (logits.float() / (params.temperature or 1.0)).log_softmax(-1)
    if params.temperature == 0:
        tokens = logits.argmax(-1)
    elif params.top_k == 0 and params.top_p == 1:
        tokens = _inverse_cdf(logps.exp(), uniforms)
    else:
        size = min(params.top_k or logps.shape[-1], logps.shape[-1])
        kept, order = logps.topk(size) if params.top_k else logps.sort(descending=True)
        probs = kept.softmax(-1)
        before = probs.double().cumsum(-1) - probs.double()
        # A token stays while those before it have not reached top_p yet: the first always does.
        probs = probs.masked_fill(before >= params.top_p, 0.0)
        tokens = order.gather(-1, _inverse_cdf(probs, uniforms)[:, None])[:, 0]
    return tokens, logps.gather(-1, tokens[:, None])[:, 0]


def _inverse_cdf(probs: Float[Tensor, "R K"], uniforms: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
    """First index at which the cumulative weight exceeds uniform * total."""
    cumulative = probs.double().cumsum(-1)
    index = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    # Only non-finite weights end past the last token; the caller sees them in the log-probability.
    return index.clamp(max=probs.shape[-1] - 1)
