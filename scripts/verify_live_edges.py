"""Live edges: quantiles of a run's own last features against the direction as it is now (spec 5.1).

Invariants, against plain Python that keeps a list of everything that was ever scored:
- weighted quantiles with ties; weights .5 ^ (age / half-life), age in rollouts, the newest 0; the oldest beyond the
  capacity forgotten
- edges are frozen within a step; its rows enter when it ends, in the order of the step whatever the micro-batches
- every row is mid while nothing is remembered, before the warm-up, and where both edges are equal
- a renewed direction re-scores the whole buffer, each entry against the vectors of its own sampling view
- on noise, about q of all rows lie beyond either edge
- in a run: the same buffer whatever the token budget, rows without advantage stay out of the signed feature's, and a step
  that scores nothing leaves it as it is
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from _gate import Gate as GateOfInvariants
from _models import step_of
from _pairs import number, randn
from _routers import Rig, rig, same
from vgrout.directions.buffer import weighted_quantile
from vgrout.directions.gate import Gate, GateSettings
from vgrout.types import View

gate = GateOfInvariants(__doc__)
VIEWS: tuple[View, ...] = ("full", "deploy")
SIZES = {"a": 3, "b": 5}
Vectors = dict[View, dict[str, Tensor]]


def quantile_by_hand(values: list[float], weights: list[float], q: float) -> float:
    reached, total = 0.0, sum(weights)
    for value, weight in sorted(zip(values, weights, strict=True)):
        reached += weight
        if reached >= q * total * (1 - 1e-12):
            return value
    raise AssertionError("the weights do not reach their sum")


def vectors_of(seed: int) -> Vectors:
    return {
        view: {m: randn(d, seed=100 * seed + 10 * i + j) for j, (m, d) in enumerate(SIZES.items())}
        for i, view in enumerate(VIEWS)
    }


def score_by_hand(row: dict[str, Tensor], vectors: dict[str, Tensor]) -> float:
    """Mean of the cosines, module by module; 0 where a norm is 0."""
    cosines = []
    for m, v in vectors.items():
        norm = float(row[m].norm() * v.norm())
        cosines.append(float(row[m] @ v) / norm if norm else 0.0)
    return sum(cosines) / len(cosines)


class ByHand:
    """Everything that was ever scored, oldest first."""

    def __init__(self, q: float, size: int, half_life: float):
        self.q, self.size, self.half_life = q, size, half_life
        self.entries: list[tuple[View, dict[str, Tensor]]] = []

    def cuts(self, vectors: Vectors) -> tuple[float, float]:
        last = self.entries[-self.size :]
        values = [score_by_hand(row, vectors[view]) for view, row in last]
        weights = [0.5 ** ((len(last) - 1 - i) / self.half_life) for i in range(len(last))]
        return quantile_by_hand(values, weights, self.q), quantile_by_hand(values, weights, 1 - self.q)


def rows_at(step: int, n: int) -> list[tuple[View, dict[str, Tensor]]]:
    """The rows of a step in its order, views mixed."""
    return [
        (VIEWS[(i * 7 + step) % 3 % 2], {m: randn(d, seed=1000 * step + 10 * i + j) for j, (m, d) in enumerate(SIZES.items())})
        for i in range(n)
    ]  # fmt: skip


def feed(it: Gate, rows: list[tuple[View, dict[str, Tensor]]], vectors: Vectors, size: int, backwards: bool) -> Tensor:
    """Scores a step in micro-batches of one view; the scores in the order of the step."""
    found = torch.zeros(len(rows), dtype=torch.float64)
    batches = []
    for view in VIEWS:
        own = [i for i, (v, _) in enumerate(rows) if v == view]
        batches += [(view, own[i : i + size]) for i in range(0, len(own), size)]
    for view, at in reversed(batches) if backwards else batches:
        order = at[::-1] if backwards else at
        features = {m: torch.stack([rows[i][1][m] for i in order]) for m in SIZES}
        found[order] = it.scores(features, vectors, view, order)
    return found


def live_gate(q: float = 0.25, size: int = 30, half_life: float = 9.0, warmup: int = 0) -> Gate:
    settings = GateSettings(
        edges="live", live_quantile=q, live_buffer=size, live_half_life=half_life, live_warmup=warmup
    )
    return Gate(settings, "three_way")


@gate.invariant("weighted quantiles as counted by hand, ties included; equal weights give the plain ones")
def _():
    worst = 0.0
    for seed in range(40):
        values = randn(1 + seed % 13, seed=seed)
        values = (values * 2).round() if seed % 2 else values
        weights = randn(len(values), seed=50 + seed).exp()
        for q in (0.01, 0.1, 0.3, 0.5, 0.9, 0.999):
            by_hand = quantile_by_hand(values.tolist(), weights.tolist(), q)
            worst = max(worst, abs(weighted_quantile(values, weights, q) - by_hand))
    ten, equal = torch.arange(10).double(), torch.ones(10).double()
    assert [weighted_quantile(ten, equal, q) for q in (0.05, 0.15, 0.55, 0.95)] == [0, 1, 5, 9] and worst == 0, worst
    return "40 samples x 6 quantiles: equal"


@gate.invariant(
    "edges over 9 steps of mixed views by hand: half-life, ages, capacity, and vectors that change on the way"
)
def _():
    it, by_hand = live_gate(), ByHand(0.25, 30, 9.0)
    worst = 0.0
    for step in range(9):
        vectors = vectors_of(step // 3)
        rows = rows_at(step, 7)
        if step == 4:
            rows[2][1]["a"].zero_()
        score = feed(it, rows, vectors, 2, backwards=bool(step % 2))
        wanted = torch.tensor([score_by_hand(row, vectors[view]) for view, row in rows], dtype=torch.float64)
        worst = max(worst, float((score - wanted).abs().max()))
        cuts = it.buffer.cuts
        assert (cuts is None) == (step == 0)
        if cuts is not None:
            expected = by_hand.cuts(vectors)
            worst = max(worst, *(abs(a - b) for a, b in zip(cuts, expected, strict=True)))
            share = [1.0 if s >= cuts[1] else 0.0 if s <= cuts[0] else 0.5 for s in score.tolist()]
            assert it.share(score).tolist() == share
            it.action = "ramp"
            ramp = [min(max((s - cuts[0]) / (cuts[1] - cuts[0]), 0.0), 1.0) for s in score.tolist()]
            assert torch.allclose(it.share(score), torch.tensor(ramp, dtype=torch.float64), atol=1e-12)
            it.action = "three_way"
        columns = it.end_step()
        assert (columns["gate_lower"], columns["gate_upper"]) == (cuts or (None, None)) and columns["gate_modules"] == 2
        by_hand.entries += rows
        assert len(it.buffer) == min(7 * (step + 1), 30)
    assert worst < 1e-6, worst  # remembered features are fp32
    stale = by_hand.cuts(vectors_of(0))
    fresh = by_hand.cuts(vectors_of(2))
    assert abs(stale[0] - fresh[0]) > 1e-3, "old and new vectors give the same edges: the test says nothing"
    swapped = by_hand.cuts({"full": vectors_of(2)["deploy"], "deploy": vectors_of(2)["full"]})
    assert abs(swapped[0] - fresh[0]) > 1e-3, "an entry's view does not matter: the test says nothing"
    return f"63 rollouts, 30 remembered: within {worst:.0e}"


@gate.invariant("edges are frozen within a step; the same edges and buffer whatever the micro-batches and their order")
def _():
    a, b = live_gate(), live_gate()
    for step in range(5):
        rows, vectors = rows_at(step, 11), vectors_of(0)
        first = feed(a, rows[:4], vectors, 3, backwards=False)
        frozen = a.buffer.cuts
        feed_rest = {m: torch.stack([row[m] for _, row in rows[4:]]) for m in SIZES}
        for i, (view, _) in enumerate(rows[4:], start=4):
            a.scores({m: f[i - 4 : i - 3] for m, f in feed_rest.items()}, vectors_of(3), view, [i])
            assert a.buffer.cuts is frozen, "the edges moved within the step, or followed other vectors"
        feed(b, rows, vectors, 4, backwards=True)
        assert a.buffer.cuts == b.buffer.cuts and len(first) == 4
        a.end_step()
        b.end_step()
        assert same(a.state_dict(), b.state_dict()), f"step {step}: the order of the micro-batches is in the buffer"
    remembered = b.buffer.state_dict()["rows"]
    newest = torch.cat([f / f.norm() for f in rows_at(4, 11)[10][1].values()]).float()
    assert torch.equal(remembered[-1], newest), "the step's last rollout is not the newest"
    return "5 steps of 11 rollouts, 3 ways to split them"


@gate.invariant("every row is mid while nothing is remembered, before the warm-up, and where both edges are equal")
def _():
    vectors, counts = vectors_of(0), []
    for warmup in (0, 7, 20):
        it, mids = live_gate(warmup=warmup), []
        for step in range(5):
            score = feed(it, rows_at(step, 7), vectors, 3, backwards=False)
            mids.append(bool((it.share(torch.cat([score, score + 100, score - 100])) == 0.5).all()))
            it.end_step()
        assert mids == [7 * step < max(warmup, 1) for step in range(5)], (warmup, mids)
        counts.append(sum(mids))
    it = live_gate()
    same_rows = [rows_at(0, 1)[0]] * 6
    for _ in range(2):
        score = feed(it, same_rows, vectors, 3, backwards=False)
        it.end_step()
    score = feed(it, same_rows, vectors, 3, backwards=False)
    assert it.buffer.cuts is not None and it.buffer.cuts[0] == it.buffer.cuts[1]
    assert bool((it.share(torch.cat([score, score + 1, score - 1])) == 0.5).all()), "equal edges tell rows apart"
    return f"mid steps at warm-up 0, 7, 20: {counts}"


@gate.invariant("on noise about q of the rows lie beyond either edge, though nothing hacks")
def _():
    figures = []
    for q, half_life in ((0.1, 96.0), (0.25, 96.0)):
        it = live_gate(q=q, size=8192, half_life=half_life)
        g = torch.Generator().manual_seed(0)
        vectors: Vectors = {"full": {f"m{m}": torch.randn(6, generator=g) for m in range(4)}}
        hack = clean = total = 0
        for step in range(150):
            features = {m: torch.randn(16, 6, generator=g) for m in vectors["full"]}
            share = it.share(it.scores(features, vectors, "full", range(16)))
            it.end_step()
            if step >= 10:
                hack, clean, total = hack + int((share == 1).sum()), clean + int((share == 0).sum()), total + 16
        assert abs(hack / total - q) < 0.03 and abs(clean / total - q) < 0.03, (q, hack / total, clean / total)
        figures.append(f"q {q}: {hack / total:.3f} hack, {clean / total:.3f} clean")
    return f"{'; '.join(figures)} of {total} rows"


def remembered(r: Rig) -> dict[str, Any]:
    return r.intervention.state_dict()["gate"]["buffer"]


@gate.invariant(
    "in a run: the same buffer whatever the token budget; rows without advantage stay out where signs are read"
)
def _():
    settings: dict[str, Any] = {"edges": "live", "live_half_life": 10.0, "live_quantile": 0.2}
    for name in ("routeV", "routeA"):
        whole, parts = (rig(name, **settings) for _ in range(2))
        for n in range(2):
            whole.step(n)
            parts.step(n, token_budget=25)
        a, b = remembered(whole), remembered(parts)
        sampled = ["full", "full", "full", "deploy", "deploy", "deploy"] * 4
        assert a["views"] == b["views"] == (sampled if name == "routeV" else ["deploy"] * 24), a["views"]
        assert torch.allclose(a["rows"], b["rows"], atol=1e-5), float((a["rows"] - b["rows"]).abs().max())
        lower = [number(r.intervention.stats()["gate_lower"]) for r in (whole, parts)]
        assert abs(lower[0] - lower[1]) < 1e-5
    level = step_of([[1.0] * 4, [3.0, 0.5, 2.0, 0.0]], masked=((1, 2),))
    for name, kept in (("routeV", 3), ("routeA", 8)):
        r = rig(name, **settings)
        stats, _ = r.step(0, step=level)
        assert len(remembered(r)["views"]) == kept == sum(s is not None for s in stats.scores), (name, stats.scores)
    r = rig("routeV", **settings)
    r.step(0)
    before = remembered(r)
    r.step(1, step=step_of([[1.0] * 4]))
    assert same(before, remembered(r)) and r.intervention.stats()["gate_p50"] is None
    r.step(2)
    assert len(remembered(r)["views"]) == 24 and r.intervention.stats()["gate_lower"] is not None
    return "routeV and routeA, 24 rollouts"


if __name__ == "__main__":
    gate.main()
