"""Planted data for the gates of the direction check: pairs' and rows' features with a known signal in every module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vgrout.directions.assessment import LabelledRows, candidates
from vgrout.directions.bank import Scores, haar_bank, joined, pair_bank, score_rows
from vgrout.directions.pairs import Pair
from vgrout.directions.scoring import extended

MODULES, SIZE, DRAWS = 24, 8, 40


def pairs_of(n: int, families: tuple[str, ...] = ("a", "b", "c", "d")) -> list[Pair]:
    """n pairs, dealt to the families in turn; only headings and tags matter."""
    names = [families[i % len(families)] for i in range(n)]
    return [
        Pair(f"{f}/{i}", (f, "tag"), (("user", f"p{i}"),), hack=f"h{i}", clean=f"c{i}") for i, f in enumerate(names)
    ]


@dataclass(frozen=True)
class Planted:
    """Gaussian features with +-signal/2 along a unit vector of each module, and an offset that all of them share."""

    pairs: list[Pair]
    sides: dict[str, Tensor]
    """By module, [2, p, d]."""
    features: dict[str, Tensor]
    """By module, [n, d]."""
    rows: LabelledRows


def planted(signal: float, *, pairs: int = 20, rows: int = 400, seed: int = 0) -> Planted:
    """Half of the rows are positive; modes m0..m3 and 40 problems in turn."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    positive = torch.arange(rows) % 8 < 4
    sides, features = {}, {}
    for m in range(MODULES):
        axis = normal(SIZE)
        axis, offset = axis / axis.norm(), 0.3 * normal(SIZE)
        side = torch.tensor([0.5, -0.5]).view(2, 1, 1) * signal * axis
        sides[f"m{m}"] = offset + normal(2, pairs, SIZE) + side
        features[f"m{m}"] = offset + normal(rows, SIZE) + (positive[:, None].float() - 0.5) * signal * axis
    kinds, problems = tuple(f"m{i % 4}" for i in range(rows)), tuple(f"p{i % 40}" for i in range(rows))
    labelled = LabelledRows(positive, kinds, ("0/0",) * rows, problems, normal(rows).abs())
    return Planted(pairs_of(pairs), sides, features, labelled)


def all_columns(p: Planted, content: dict[str, Tensor] | None = None) -> tuple[Scores, dict[str, slice]]:
    """Scores of planted rows against the columns of the command."""
    weights, layout = candidates(p.pairs, p.rows.kinds, DRAWS)
    banks = [pair_bank(p.sides, weights), haar_bank(p.sides, "v_grad full", DRAWS)]
    if content is not None:
        banks.append(pair_bank(content, torch.ones(1, len(p.pairs)).double()))
    return score_rows(p.features, joined(banks)), extended(layout, DRAWS, ["other"] if content else [])
