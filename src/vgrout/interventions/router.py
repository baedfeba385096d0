"""The router of `moe`: a logistic function of the mean cosine between a row's features and one learned vector per module."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vgrout.types import UserError

HIGH = 0.9
"""Where calibration puts the mean score of label 1; that of label 0 comes to 1 - HIGH."""


class Router(nn.Module):
    """`w = sigmoid(a * mean_m cos(h_m - c_m, u_m) + b)`; u, a and b are trained, the centre c is handed in (spec 5.2)."""

    def __init__(self, u: Mapping[str, Float[Tensor, " k"]]):
        super().__init__()
        self.names = tuple(u)
        sizes = [len(v) for v in u.values()]
        self.u = nn.Parameter(torch.cat([v.detach().clone() for v in u.values()]))
        self.a, self.b = (nn.Parameter(self.u.new_tensor(value)) for value in (1.0, 0.0))
        self.module_of: Int[Tensor, " D"] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))

    def flat(self, features: Mapping[str, Float[Tensor, "n k"]]) -> Float[Tensor, "n D"]:
        """All modules side by side, in the router's order and type."""
        return torch.cat([features[name].detach() for name in self.names], dim=1).to(self.u)

    def score(self, centred: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """Mean over the modules of the cosine with u; a module without a feature counts as 0."""
        dot = self._by_module(centred * self.u)
        square = self._by_module(centred.square()) * self._by_module(self.u.square()[None])
        # 1 in place of 0 under the root, whose gradient at 0 is not finite; a nan stays one, so that w is refused.
        norm = torch.where(square == 0, torch.ones_like(square), square).sqrt()
        return torch.where(square == 0, torch.zeros_like(dot), dot / norm).mean(dim=1)

    def forward(self, centred: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """Logits of w."""
        return self.a * self.score(centred) + self.b

    @torch.no_grad()
    def calibrate(self, centred: Float[Tensor, "n D"], labels: Float[Tensor, " n"]) -> None:
        """Sets a and b so that the mean scores of the two labels come to .9 and .1. `UserError` where label 1 is not the
        higher."""
        score = self.score(centred).double()
        high, low = float(score[labels == 1].mean()), float(score[labels == 0].mean())
        if not high > low:
            raise UserError(
                f"moe: the pairs' label 1 scores {high:.4f} along the direction, label 0 {low:.4f}; expected the first to be "
                "higher, or the router starts upside down; choose other --pairs"
            )
        logit = math.log(HIGH / (1 - HIGH))
        self.a.fill_(2 * logit / (high - low))
        self.b.fill_(-logit * (high + low) / (high - low))

    def pin_loss(self, centred: Float[Tensor, "n D"], labels: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Binary cross-entropy on the pairs."""
        return F.binary_cross_entropy_with_logits(self(centred), labels.to(self.u))

    def _by_module(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n M"]:
        return x.new_zeros((len(x), len(self.names))).index_add(1, self.module_of, x)


def haar_labels(score: Float[Tensor, " two_p"]) -> Float[Tensor, " two_p"]:
    """`haar`: 1 for the upper half, by its own score, of the hack completions and, apart from them, of the clean ones.

    Which completion is the hack decides nothing but which half of the list a row is ranked in, so both labels hold as many
    of either.
    """
    labels = torch.zeros(len(score))
    p = len(score) // 2
    for start in (0, p):
        order = score[start : start + p].argsort(descending=True, stable=True)
        labels[start + order[: p // 2]] = 1.0
    return labels
