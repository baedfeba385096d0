"""Is a direction any good? The numbers of the check (spec 4.5); the command is verify_direction_command.py.

- AUROC with ties, within strata and over resamples, F0.5 at its best and at a threshold: as counted by hand
- the binomial bound is the exact one
- folds hold each pair out exactly once, families spread evenly; held-out and left-out figures equal plain loops
- the draws are the placebos haar:0, haar:1, ... and shuffled:0, ... with edges that know no true label
- planted signal: the real AUROC is high, the median over 40 draws of haar and of shuffled lies in .4-.6, by mean score and
  by pooled score; edges that saw the true labels are caught, and held-out tests are at chance on noise
- a module or a row without gradient scores 0 and is counted
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import torch
from torch import Tensor

from _gate import Gate
from _models import adapted
from _pairs import extractor_of, sides_of
from _planted import DRAWS, MODULES, SIZE, all_columns, pairs_of, planted
from vgrout.directions.bank import Bank, edges, haar_bank, pair_bank, score_rows, shuffled_weights
from vgrout.directions.check import binomial_bound, folds, haar_cosines, held_out_erase, held_out_routing, leave_one_out
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.detection import (
    auroc,
    best_f_half,
    f_half_at,
    rank_correlation,
    resample_counts,
    resampled_auroc,
)
from vgrout.directions.gradient import Gradients
from vgrout.directions.placebo import Source, blinded
from vgrout.directions.subspace import axes_of

gate = Gate(__doc__)


def tied(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores with many ties, and labels."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6, (n, 3), generator=g).double(), torch.rand(n, generator=g) < 0.4


def counted(scores: Tensor, positive: Tensor, strata: Tensor | None = None) -> float:
    """AUROC of one column, pair by pair."""
    won, pairs = 0.0, 0
    for i, j in itertools.product(range(len(scores)), repeat=2):
        if positive[i] and not positive[j] and (strata is None or strata[i] == strata[j]):
            won += float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j])
            pairs += 1
    return won / pairs


@gate.invariant("AUROC with ties, within strata, over resamples, and rank correlation: as counted by hand")
def _():
    scores, positive = tied(40)
    strata = torch.arange(40) % 3
    for part in (None, strata):
        wanted = [counted(scores[:, k], positive, part) for k in range(3)]
        assert torch.allclose(auroc(scores, positive, part), torch.tensor(wanted).double(), atol=1e-12), wanted
    assert float(auroc(torch.tensor([[1.0], [2.0], [2.0], [3.0]]), torch.tensor([False, True, False, True]))) == 3.5 / 4
    assert bool(auroc(scores, torch.zeros(40, dtype=torch.bool)).isnan().all()), "no positive: undefined"
    assert auroc(torch.cat([scores, scores * float("nan")], 1), positive).isnan().tolist() == [False] * 3 + [True] * 3
    clusters = [f"p{i % 7}" for i in range(40)]
    counts = resample_counts(clusters, 50, 3)
    assert bool((counts[:, 0] == counts[:, 7]).all()) and float(counts[:, :7].sum(1).unique()) == 7
    for b in (0, 1):
        again = torch.arange(40).repeat_interleave(counts[b].long())
        for part in (None, strata):
            wanted = counted(scores[again, 0], positive[again], None if part is None else part[again])
            assert abs(float(resampled_auroc(scores[:, 0], positive, counts, part)[b]) - wanted) < 1e-12
    assert abs((rank_correlation(scores[:, 0], scores[:, 0].exp()) or 0) - 1) < 1e-12
    assert abs((rank_correlation(scores[:, 0], -scores[:, 0].exp()) or 0) + 1) < 1e-12
    return "40 rows, 3 columns of 6 values"


@gate.invariant(
    "F0.5: the best threshold never parts a tie, a given threshold is counted, no band is undefined and not 0"
)
def _():
    scores, positive = tied(40, seed=1)
    for k in range(3):
        by_hand = []
        for threshold in scores[:, k].unique():
            called = scores[:, k] >= threshold
            precision = float((called & positive).sum()) / float(called.sum())
            recall = float((called & positive).sum()) / float(positive.sum())
            by_hand.append(1.25 * precision * recall / (0.25 * precision + recall) if precision else 0.0)
        assert abs(float(best_f_half(scores, positive)[k]) - max(by_hand)) < 1e-12, (k, by_hand)
        assert abs(float(f_half_at(scores, positive, 1.0)[k]) - by_hand[1]) < 1e-12
    assert float(f_half_at(scores, positive, 99.0)[0]) == 0, "nothing called"
    assert bool(f_half_at(scores * float("nan"), positive).isnan().all()) and bool(
        best_f_half(scores * float("nan"), positive).isnan().all()
    )
    one_tie = torch.zeros(10, 1), torch.arange(10) < 4
    assert abs(float(best_f_half(*one_tie)) - 1.25 * 4 / (10 + 1)) < 1e-12, "one value: every row or none"
    return "3 columns against precision and recall"


@gate.invariant("the binomial bound is the exact one")
def _():
    for n in range(1, 13):
        heads = sorted(sum(toss) for toss in itertools.product((0, 1), repeat=n))
        wanted = heads[-(-len(heads) * 95 // 100) - 1]
        assert binomial_bound(n) == wanted / n, (n, binomial_bound(n), wanted / n)
    for n in (28, 186, 252):
        k = round(binomial_bound(n) * n)
        below = lambda k, n=n: Fraction(sum(comb(n, i) for i in range(k + 1)), 2**n)  # noqa: E731
        assert below(k) >= Fraction(19, 20) > below(k - 1), n
    return f"every toss up to n = 12; {binomial_bound(186):.3f} of 186 modules"


@gate.invariant("folds: each pair held out exactly once, families spread evenly")
def _():
    for n, share in ((20, 0.25), (23, 0.2), (5, 0.1), (9, 0.5)):
        families = [pair.family for pair in pairs_of(n, ("a", "a", "b", "c"))]
        fold = folds(families, share, seed=1)
        number = min(n, round(1 / share))
        sizes = torch.bincount(fold, minlength=number)
        assert len(sizes) == number and int(sizes.max() - sizes.min()) <= 1, sizes
        for family in set(families):
            own = torch.bincount(fold[[f == family for f in families]], minlength=number)
            assert int(own.max() - own.min()) <= 1, (n, family, own)
    assert not torch.equal(folds(["a"] * 20, 0.25, 0), folds(["a"] * 20, 0.25, 1)), "the seed does not reach them"
    return "4 sets"


@gate.invariant("held-out and left-out figures equal plain loops over folds, modules and pairs")
def _():
    p = planted(0.8, pairs=9)
    fold = folds([pair.family for pair in p.pairs], 0.34, 0)
    unit = lambda v: v.double() / v.double().norm()  # noqa: E731
    D = {name: g[0] - g[1] for name, g in p.sides.items()}
    routing = held_out_routing(p.sides, p.pairs, fold, 20)
    erase = held_out_erase(D, p.pairs, fold, ExtractionConfig(noise_floor=0.0), 20, seed=0)
    for name, d in D.items():
        held = [unit(d[fold == k].mean(0)) for k in range(3)]
        mean = sum(float(unit(d[fold != k].mean(0)) @ held[k]) for k in range(3)) / 3
        axis = sum(float(axes_of(d[fold != k], 12)[0].V[0].double() @ held[k]) for k in range(3)) / 3
        assert abs(routing.cosines[name] - mean) < 1e-6 and abs(erase.cosines[name] - axis) < 1e-5, name
    values = sorted(routing.cosines.values())
    assert abs(routing.fraction - sum(v > 0 for v in values) / MODULES) < 1e-9
    assert abs(routing.median - (values[MODULES // 2 - 1] + values[MODULES // 2]) / 2) < 1e-9
    found = leave_one_out(p.sides, p.pairs, 20)
    for i in range(9):
        scores = torch.zeros(2, 9, dtype=torch.float64)
        for name, d in D.items():
            v = unit(d[[j for j in range(9) if j != i]].mean(0))
            scores += torch.stack([torch.stack([unit(row) @ v for row in side]) for side in p.sides[name]]) / MODULES
        assert abs(found.hack[i] - float(scores[0, i])) + abs(found.clean[i] - float(scores[1, i])) < 1e-6, i
    hack, clean = torch.tensor(found.hack), torch.tensor(found.clean)
    assert found.values["paired"] == float((hack > clean).double().mean())
    wanted = counted(torch.cat([hack, clean]), torch.arange(18) < 9)
    assert abs(found.values["auroc"] - wanted) < 1e-9
    return f"{MODULES} modules, 9 pairs, 3 folds"


@gate.invariant(
    "erase: shares by hand, exchanged sides turn the first axis as a new extraction does, the Haar law holds"
)
def _():
    p = planted(0.8, pairs=8)
    D = {name: g[0] - g[1] for name, g in p.sides.items()}
    fold = torch.arange(8) % 2
    erase = held_out_erase(D, p.pairs, fold, ExtractionConfig(noise_floor=0.0, k_use=3), 20, seed=0)
    shares, turned = [], torch.zeros(MODULES, 20, dtype=torch.float64)
    for k in (0, 1):
        signs = shuffled_weights([q for q, f in zip(p.pairs, fold.tolist(), strict=True) if f != k], 20)
        for m, d in enumerate(D.values()):
            held = d[fold == k].mean(0).double()
            V = axes_of(d[fold != k], 12)[0].V[:3].double()
            c = V @ held / held.norm()
            shares.append((float(c.clamp(min=0).norm()), float(c.norm())))
            for s in range(20):
                axis = axes_of(signs[s][:, None].float() * d[fold != k], 12)[0].V[0].double()
                turned[m, s] += float(axis @ held / held.norm()) / 2
    for i, name in enumerate(("one_sided", "two_sided")):
        assert abs(erase.shares[name] - sum(s[i] for s in shares) / len(shares)) < 1e-6, name
    nulls = erase.shares["one_sided_null"], erase.shares["two_sided_null"]
    assert max(abs(nulls[0] - (3 / 16) ** 0.5), abs(nulls[1] - (3 / 8) ** 0.5), abs(erase.null - SIZE**-0.5)) < 1e-9
    wanted = float((turned > 0).double().mean(0).quantile(0.95))
    assert abs(erase.shuffled - wanted) < 1e-9, (erase.shuffled, wanted)
    law = haar_cosines(0.7, 5, 20000, np.random.default_rng(0))
    draws = torch.randn(20000, 5, generator=torch.Generator().manual_seed(0)).double()
    at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
    gap = float((law.quantile(at) - (0.7 * draws[:, 0] / draws.norm(dim=1)).quantile(at)).abs().max())
    assert gap < 0.02, gap
    return f"{len(shares)} module folds; largest gap of the law's quantiles {gap:.3f}"


@gate.invariant("the draws are the placebos haar:S and shuffled:S, with the edges of what those see")
def _():
    model, adapter = adapted()
    sides = sides_of(6)
    real = extractor_of(model, adapter, sides).extract()
    pairs, checked = pairs_of(6), 0
    for view in ("full", "deploy"):
        g = real.probes[view]
        haar, shuffled = haar_bank(g, f"v_grad {view}", 3), pair_bank(g, shuffled_weights(pairs, 3))
        for seed in range(3):
            placebo = extractor_of(model, adapter, sides, f"haar:{seed}").extract()
            for name, v in placebo.grad[view].items():
                assert torch.allclose(haar.V[name][seed].float(), v, atol=1e-6), (view, seed, name)
                seen = placebo.probes[view][name]
                cos = torch.nn.functional.cosine_similarity(seen, v.expand_as(seen), dim=-1).quantile(0.75, dim=1)
                got = torch.stack([haar.upper[name][seed], haar.lower[name][seed]]).to(cos)
                assert torch.allclose(got, cos, atol=1e-5), "haar edges"
                signs = shuffled_weights(pairs, 3)[seed].float()
                assert float(signs.sum()) == 0 and int((signs == 0).sum()) == 0
                wanted = (signs[:, None] * (g[name][0] - g[name][1])).mean(0)
                assert torch.allclose(shuffled.V[name][seed].to(wanted), wanted / wanted.norm(), atol=1e-5)
                turned = torch.where(signs[None, :, None] < 0, g[name].flip(0), g[name])
                low, high = edges(turned, shuffled.V[name][seed][None], torch.ones(1, 6).double())
                assert torch.allclose(low[0], shuffled.lower[name][seed]) and torch.allclose(
                    high[0], shuffled.upper[name][seed]
                )
                checked += 1
    odd = shuffled_weights(pairs_of(7), 5)
    assert bool(((odd == 0).sum(1) == 1).all()) and bool((odd.sum(1) == 0).all()), "an odd pair is dropped"
    swapped = blinded(Gradients({}, {"x": torch.randn(2, 7, 3)}), Source("haar", seed=0)).probe["x"]
    assert swapped.shape[1] == 6
    return f"{checked} modules of 3 draws and 2 views"


@gate.invariant(
    "planted signal: real is high, medians of haar and shuffled lie in .4-.6; edges with true labels are caught"
)
def _():
    p = planted(2.0)
    scores, layout = all_columns(p)
    truth = torch.ones(DRAWS, len(p.pairs), dtype=torch.float64)
    leaks = {}
    for name, bank in (
        ("haar", haar_bank(p.sides, "v_grad full", DRAWS)),
        ("shuffled", pair_bank(p.sides, shuffled_weights(p.pairs, DRAWS))),
    ):
        seen = {m: edges(g, bank.V[m], truth) for m, g in p.sides.items()}
        leaky = Bank(bank.V, {m: e[0] for m, e in seen.items()}, {m: e[1] for m, e in seen.items()})
        leaks[name] = float(auroc(score_rows(p.features, leaky).pooled, p.rows.positive).nanmedian())
    medians = {}
    for kind, values in (("mean", scores.mean), ("pooled", scores.pooled)):
        found = auroc(values, p.rows.positive)
        assert float(found[0]) > 0.9, (kind, float(found[0]))
        medians |= {f"{kind} {name}": float(found[layout[name]].nanmedian()) for name in ("haar", "shuffled")}
    assert all(0.4 <= value <= 0.6 for value in medians.values()), medians
    assert leaks["haar"] > 0.7, f"the test cannot tell edges that leak: {leaks}"
    return ", ".join(f"{k} {v:.2f}" for k, v in (medians | {f"leaky {k}": v for k, v in leaks.items()}).items())


@gate.invariant("held-out and left-out tests pass on a planted signal and are at chance on noise", slow=True)
def _():
    found = {}
    for signal, seeds in ((0.0, 6), (2.0, 1)):
        parts: list[tuple[bool, float]] = []
        for seed in range(seeds):
            p = planted(signal, rows=8, seed=seed)
            fold = folds([pair.family for pair in p.pairs], 0.25, seed)
            D = {name: g[0] - g[1] for name, g in p.sides.items()}
            erase = held_out_erase(D, p.pairs, fold, ExtractionConfig(), 20, seed)
            left = leave_one_out(p.sides, p.pairs, 20)
            parts.append((held_out_routing(p.sides, p.pairs, fold, 20).passed, left.values["auroc"]))
            assert signal == 0 or (parts[-1][0] and left.passed and erase.passed), (seed, parts, erase)
            assert 0 < erase.shares["one_sided"] <= erase.shares["two_sided"] <= 1 + 1e-9
        found[signal] = sum(a for a, _ in parts), sum(b for _, b in parts) / len(parts)
    assert found[0.0][0] <= 2 and abs(found[0.0][1] - 0.5) < 0.1, found
    return f"on noise {found[0.0][0]} of 6 pass, left-out AUROC {found[0.0][1]:.2f}; planted {found[2.0][1]:.2f}"


@gate.invariant("modules and rows without gradient score 0, are counted, and spoil nothing")
def _():
    p = planted(1.0)
    sides = p.sides | {"dead": torch.zeros(2, 20, SIZE), "same": torch.ones(2, 20, SIZE)}
    fold = folds([pair.family for pair in p.pairs], 0.25, 0)
    routing = held_out_routing(sides, p.pairs, fold, 20)
    erase = held_out_erase({n: g[0] - g[1] for n, g in sides.items()}, p.pairs, fold, ExtractionConfig(), 20, 0)
    for part in (routing, erase):
        assert part.zero_norm == 2 and part.cosines["dead"] == part.cosines["same"] == 0, part
        assert part.fraction <= MODULES / (MODULES + 2)
    features = {name: f.clone() for name, f in p.features.items()}
    for f in features.values():
        f[3] = 0
    bank = pair_bank(p.sides | {"dead": torch.zeros(2, 20, SIZE)}, torch.ones(1, 20).double())
    scores = score_rows(features | {"dead": torch.randn(400, SIZE)}, bank).mean
    assert float(scores[3]) == 0 and bool(scores.isfinite().all()) and not bool(bank.V["dead"].any())
    plain = score_rows(p.features, pair_bank(p.sides, torch.ones(1, 20).double())).mean
    assert torch.allclose(scores[4:] * (MODULES + 1) / MODULES, plain[4:]), "a dead module scores 0 and counts"
    assert leave_one_out(sides, p.pairs, 20).passed
    return "2 dead modules, 1 dead row"


if __name__ == "__main__":
    gate.main()
