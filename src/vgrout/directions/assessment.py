"""What scores of labelled rows say about a direction and its placebos: AUROC and F0.5 with bands, by kind of row.

`all` takes every row. `within modes` counts only pairs of rows of one kind (a loophole mode): kinds differ in their
prompts, and a direction that merely told prompts with a hint from others would do well on `all`. `within modes and 10
steps` also asks that both rows are of one run and one window of steps: hacks come late in a run, when answers have changed
in other ways too, and what merely follows the run's course would do well within modes.

A direction beats its placebos in a group if its AUROC lies above the 97.5th percentiles of the Haar draws and of the
draws of exchanged sides, and above every content placebo by more than chance: the 2.5th percentile of the difference over
resamples of the problems is above 0. The side of a content set that is called its hack is arbitrary, so its AUROC is
turned to lie above .5 first. Passed: it beats them in each of these groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vgrout.directions.bank import Scores, shuffled_weights
from vgrout.directions.detection import (
    NAN,
    auroc,
    best_f_half,
    f_half_at,
    percentiles,
    rank_correlation,
    resample_counts,
    resampled_auroc,
)
from vgrout.directions.pairs import Pair

WINDOW = 10
"""Steps of a run whose rollouts count as of one time."""
ALL, WITHIN, MATCHED = "all", "within modes", f"within modes and {WINDOW} steps"
OVERALL = (ALL, WITHIN, MATCHED)
RESAMPLES = 1000
Layout = dict[str, slice]
"""Which columns of the scores belong to which direction: real, haar, shuffled, content NAME, family NAME, ..."""


@dataclass(frozen=True)
class LabelledRows:
    """What is known of each row beside its features."""

    positive: Bool[Tensor, " n"]
    kind: tuple[str, ...]
    """Loophole mode."""
    period: tuple[str, ...]
    """Run and window of steps."""
    cluster: tuple[str, ...]
    """Problem: rows of one problem are no independent draws."""
    length: Float[Tensor, " n"]
    """Completion tokens."""

    def of(self, kind: str) -> Bool[Tensor, " n"]:
        return torch.tensor([k == kind for k in self.kind])

    @property
    def kinds(self) -> list[str]:
        """Kinds with rows of both labels, in the order of the rows."""
        both = lambda rows: bool((rows & self.positive).any() and (rows & ~self.positive).any())  # noqa: E731
        return [kind for kind in dict.fromkeys(self.kind) if both(self.of(kind))]

    def strata(self, *, periods: bool) -> Int[Tensor, " n"]:
        """The number of each row's kind, or of its kind and period."""
        keys = list(zip(self.kind, self.period, strict=True)) if periods else list(self.kind)
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return torch.tensor([numbers[key] for key in keys])


@dataclass(frozen=True)
class GroupResult:
    """The figures of one group of rows. Bands are percentiles 2.5, 50, 97.5."""

    n: int
    positives: int
    auroc: float
    interval: list[float | None]
    """95 %, over resamples of the problems."""
    haar: list[float | None]
    """AUROC of the draws."""
    shuffled: list[float | None]
    contents: dict[str, float]
    length: float
    """AUROC of the number of completion tokens."""
    lost_to: list[str]
    """Placebos that it does not beat."""
    beats_length: bool
    f_best: dict[str, float | list[float | None] | None]
    f_edges: dict[str, float | list[float | None] | None]
    """At the label-free threshold: pooled score >= 1. None: no band in any module."""
    f_all_called: float


@dataclass(frozen=True)
class Detection:
    """How well one kind of feature finds the positives among the rows."""

    groups: dict[str, GroupResult]
    families: dict[str, dict[str, float]]
    """AUROC by kind of the direction of one family of pairs."""
    without: dict[str, dict[str, float]]
    """The same of all pairs but that family's."""
    uncovered: dict[str, dict[str, float | int | bool]]
    """Per kind: AUROC of the pairs that do not cover it, beside the Haar draws' 97.5th percentile."""
    length_correlation: float | None
    """Rank correlation of score and completion tokens."""
    undefined: dict[str, int]
    """Directions without a band in any module, by group of directions."""

    @property
    def passed(self) -> bool:
        """Also false where no kind has rows of both labels, so that `within modes` does not exist."""
        return WITHIN in self.groups and not any(g.lost_to for name, g in self.groups.items() if name in OVERALL)


def candidates(pairs: Sequence[Pair], kinds: Sequence[str], draws: int) -> tuple[Float[Tensor, "n p"], Layout]:
    """Weights over the pairs of every direction that is made of them, and where each lies.

    real, shuffled, `family F` (its pairs alone), `without F` (the others), `uncovering K` (the pairs without tag K).
    """
    families = list(dict.fromkeys(pair.family for pair in pairs))
    rows = {"real": torch.ones(1, len(pairs)), "shuffled": shuffled_weights(pairs, draws)}
    for family in families:
        own = torch.tensor([[pair.family == family for pair in pairs]])
        rows |= {f"family {family}": own} | ({f"without {family}": ~own} if not own.all() else {})
    for kind in kinds:
        open_to = torch.tensor([[kind not in pair.tags for pair in pairs]])
        if open_to.any():
            rows[f"uncovering {kind}"] = open_to
    layout, at = {}, 0
    for name, weights in rows.items():
        layout[name] = slice(at, at + len(weights))
        at += len(weights)
    return torch.cat([w.double() for w in rows.values()]), layout


def assess(scores: Scores, layout: Layout, rows: LabelledRows, pairs: Sequence[Pair], seed: int) -> Detection:
    """All figures of one kind of feature. `scores` has the columns of `layout`: `candidates`, haar and contents."""
    counts = resample_counts(rows.cluster, RESAMPLES, seed)
    groups = {ALL: _group(scores, layout, rows, torch.ones_like(rows.positive), counts)}
    if rows.kinds:
        inside = torch.stack([rows.of(kind) for kind in rows.kinds]).any(dim=0)
        groups[WITHIN] = _group(scores, layout, rows, inside, counts, rows.strata(periods=False))
        if len(set(rows.period)) > 1:
            groups[MATCHED] = _group(scores, layout, rows, inside, counts, rows.strata(periods=True))
    groups |= {kind: _group(scores, layout, rows, rows.of(kind), counts) for kind in rows.kinds}
    by_kind = {kind: auroc(scores.mean[rows.of(kind)], rows.positive[rows.of(kind)]) for kind in rows.kinds}
    matrix = lambda prefix: {  # noqa: E731
        name.removeprefix(prefix): {kind: float(values[at.start]) for kind, values in by_kind.items()}
        for name, at in layout.items()
        if name.startswith(prefix)
    }
    uncovered = {}
    for kind, values in by_kind.items():
        if (at := layout.get(f"uncovering {kind}")) is not None:
            value, upper = float(values[at.start]), groups[kind].haar[2] or NAN
            used = sum(kind not in pair.tags for pair in pairs)
            uncovered[kind] = {
                "auroc": value,
                "haar": upper,
                "pairs": used,
                "covered": used < len(pairs),
                "detected": value > upper,
            }
    undefined = {name: int(scores.pooled[:1, at].isnan().sum()) for name, at in layout.items()}
    return Detection(
        groups,
        matrix("family "),
        matrix("without "),
        uncovered,
        rank_correlation(scores.mean[:, layout["real"].start], rows.length.double()),
        {name: n for name, n in undefined.items() if n},
    )


def _group(
    scores: Scores,
    layout: Layout,
    rows: LabelledRows,
    inside: Bool[Tensor, " n"],
    counts: Float[Tensor, "b n"],
    strata: Int[Tensor, " n"] | None = None,
) -> GroupResult:
    positive, mean, pooled = rows.positive[inside], scores.mean[inside], scores.pooled[inside]
    within = None if strata is None else strata[inside]
    value = auroc(mean, positive, within)
    real = layout["real"].start
    contents = {
        n.removeprefix("content "): float(value[at.start]) for n, at in layout.items() if n.startswith("content ")
    }
    length = float(auroc(rows.length[inside, None], positive, within)[0])
    haar, shuffled = percentiles(value[layout["haar"]]), percentiles(value[layout["shuffled"]])
    spread = lambda column: resampled_auroc(column, positive, counts[:, inside], within)  # noqa: E731
    own = spread(mean[:, real])

    def beats(column: Float[Tensor, " n"], single: float) -> bool:
        other = spread(column)
        low = percentiles(own - (other if single >= 0.5 else 1 - other))[0]
        return low is not None and low > 0

    lost = [
        name for name, band in (("haar", haar), ("shuffled", shuffled)) if not float(value[real]) > (band[2] or 1.0)
    ]
    lost += [f"content {n}" for n, v in contents.items() if not beats(mean[:, layout[f"content {n}"].start], v)]
    edges = f_half_at(pooled, positive)
    return GroupResult(
        n=len(positive),
        positives=int(positive.sum()),
        auroc=float(value[real]),
        interval=percentiles(own)[::2],
        haar=haar,
        shuffled=shuffled,
        contents=contents,
        length=length,
        lost_to=lost,
        beats_length=beats(rows.length[inside], length),
        f_best=_by_direction(best_f_half(mean, positive), layout),
        f_edges=_by_direction(edges, layout),
        f_all_called=1.25 * int(positive.sum()) / (len(positive) + 0.25 * int(positive.sum())),
    )


def _by_direction(values: Float[Tensor, " k"], layout: Layout) -> dict[str, float | list[float | None] | None]:
    """Figures of the directions that a table shows: one number, or the band of the draws; None where undefined."""
    found: dict[str, float | list[float | None] | None] = {}
    for name, at in layout.items():
        if name in ("haar", "shuffled"):
            found[name] = percentiles(values[at])
        elif name == "real" or name.startswith("content "):
            found[name] = percentiles(values[at], [50.0])[0]
    return found
