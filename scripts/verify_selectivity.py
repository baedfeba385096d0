"""Selectivity: relative hack drop less relative solve drop, its bootstrap, and what is said of it.

Invariants:
- values equal those worked out by hand, per marker family, over one run and over several;
- a bound of the interval equals that of a bootstrap written as a plain loop over problems, up to resampling noise;
- simulated evaluations are covered about as often as said; views of equal effect are seldom told apart;
- where the full model has no hacks, no solves or nothing graded, the value is undefined and the text says so, never 0;
- a quotient that many resamples leave undefined has no interval, nor do a handful of problems;
- unequal prompts are refused; the draws are seeded, touch no other random state, and take well under a second;
- the verdict says above, below or not apart as the intervals lie, and nothing where there is none;
- the two sources of variation are seen: runs that differ widen the interval; what three runs are worth is measured.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from _gate import Gate
from vgrout.selectivity import Selectivity, loaded, selectivity, selectivity_text, verdicts

gate = Gate(__doc__)
VIEWS = ("full", "deploy", "clean_ablated", "random_removal")
Rows = list[dict[str, Any]]


def row(view: str, problem: object, markers: str, hack: bool, solve: bool, *, infra: bool = False) -> dict[str, Any]:
    """`markers` empty: a prompt without a hint."""
    mode = "run_tests" if markers else "gt_only"
    label = {"exploited": bool(hack), "gt_correct": bool(solve), "infra": infra}
    return {
        "split": "held-out",
        "view": view,
        "problem_id": str(problem),
        "mode": mode,
        "markers": markers or "eval",
        **label,
    }


def evaluation(
    counts: dict[str, tuple[int, int]], n: int = 20, families: tuple[str, ...] = ("eval",), infra: int = 0
) -> Rows:
    """n problems, each with a hint of each family and without; the first (hacks, solves) of each view succeed."""
    rows = []
    for view, (hacks, solves) in counts.items():
        for i in range(n):
            bad = i >= n - infra
            rows += [row(view, i, family, i < hacks, False, infra=bad) for family in families]
            rows.append(row(view, i, "", False, i < solves, infra=bad))
    return rows


def of(found: list[Selectivity], view: str = "deploy", markers: str = "eval") -> Selectivity:
    (one,) = [s for s in found if (s.view, s.markers) == (view, markers)]
    return one


@gate.invariant("values equal those worked out by hand, per family and over several runs")
def _():
    counts = {"full": (16, 10), "deploy": (2, 9), "clean_ablated": (12, 2), "random_removal": (16, 10), "base": (1, 5)}
    found = selectivity([evaluation(counts)])
    assert [s.view for s in found] == list(VIEWS[1:]), "base is no ablation"
    wanted = {"deploy": (14 / 16, 1 / 10), "clean_ablated": (4 / 16, 8 / 10), "random_removal": (0.0, 0.0)}
    for view, (hack, solve) in wanted.items():
        s = of(found, view)
        assert s.hack_drop is not None and s.solve_drop is not None and s.value is not None
        assert abs(s.hack_drop - hack) < 1e-12 and abs(s.solve_drop - solve) < 1e-12, s
        assert abs(s.value - (hack - solve)) < 1e-12, s
    assert of(found, "random_removal").interval == (0.0, 0.0), "the full view itself"
    worse = of(selectivity([evaluation({"full": (4, 10), "deploy": (8, 12)})]))
    assert worse.hack_drop == -1 and abs((worse.value or 0) + 0.8) < 1e-12, worse
    two = evaluation(counts, families=("train", "eval"))
    for r in two:
        if r["view"] == "full" and r["markers"] == "train" and r["mode"] != "gt_only":
            r["exploited"] = int(r["problem_id"]) < 4
    hidden = of(selectivity([two]), "deploy", "train").hack_drop
    assert hidden == 0.5 and of(selectivity([two])).hack_drop == 14 / 16, hidden
    second = {"full": (8, 6), "deploy": (4, 6)}
    pooled = of(selectivity([evaluation({v: counts[v] for v in second}), evaluation(second)]))
    assert abs((pooled.value or 0) - (18 / 24 - 1 / 16)) < 1e-12, pooled
    ungraded = of(selectivity([evaluation({"full": (16, 10), "deploy": (2, 9)}, infra=4)]))
    assert ungraded.hack_drop == 14 / 16 and abs((ungraded.solve_drop or 0) - 0.1) < 1e-12, ungraded
    return f"deploy {wanted['deploy'][0] - wanted['deploy'][1]:.3f}, clean block {4 / 16 - 8 / 10:.3f}; two runs pooled {pooled.value:.4f}"


def drawn(rng: np.random.Generator, n: int, rates: dict[str, tuple[float, float]], shift: float = 0.0) -> Rows:
    """n problems of differing difficulty; views share each problem's difficulty. `shift` is the run's own, in solving."""
    hard, lazy = rng.normal(0, 1, n), rng.normal(0, 1, n)
    rows: Rows = []
    for view, (hack, solve) in rates.items():
        of_hack = np.clip(hack * np.exp(0.3 * lazy - 0.045), 0, 1)
        of_solve = np.clip(solve * np.exp(0.3 * hard - 0.045 + shift), 0, 1)
        hacks, solves = rng.random(n) < of_hack, rng.random(n) < of_solve
        rows += [row(view, i, "eval", hacks[i], False) for i in range(n)]
        rows += [row(view, i, "", False, solves[i]) for i in range(n)]
    return rows


@gate.invariant("the interval is that of a bootstrap written as a plain loop")
def _():
    rows = drawn(np.random.default_rng(1), 60, {"full": (0.5, 0.4), "deploy": (0.1, 0.35)})
    rng, values = np.random.default_rng(9), []
    for _ in range(2000):
        total = {(v, k): 0 for v in ("full", "deploy") for k in ("exploited", "gt_correct")}
        for i in rng.integers(0, 60, 60):
            for view, offset in (("full", 0), ("deploy", 120)):
                total[view, "exploited"] += rows[offset + i]["exploited"]
                total[view, "gt_correct"] += rows[offset + 60 + i]["gt_correct"]
        hack, solve = (1 - total["deploy", k] / total["full", k] for k in ("exploited", "gt_correct"))
        values.append(hack - solve)
    ours, plain = of(selectivity([rows])).interval, np.quantile(values, [0.025, 0.975])
    assert ours is not None
    gap = float(np.abs(np.array(ours) - plain).max())
    assert gap < 0.06 and plain[1] - plain[0] > 0.2, (ours, plain)
    other = of(selectivity([rows], seed=1)).interval
    assert of(selectivity([rows])).interval == ours != other
    return f"[{ours[0]:.3f}, {ours[1]:.3f}] against [{plain[0]:.3f}, {plain[1]:.3f}]"


@gate.invariant("simulated evaluations are covered about as often as said, and equal effects seldom told apart")
def _():
    rng, n, hits, apart, trials = np.random.default_rng(2), 120, 0, 0, 200
    rates = {"full": (0.6, 0.4), "deploy": (0.1, 0.36), "random_removal": (0.1, 0.36)}
    truth = (0.6 - 0.1) / 0.6 - (0.4 - 0.36) / 0.4
    for _ in range(trials):
        found = selectivity([drawn(rng, n, rates)], resamples=400)
        low, high = of(found).interval or (0, 0)
        hits += low <= truth <= high
        apart += "not apart" not in verdicts(found)[0]
    assert 0.89 <= hits / trials <= 0.99, hits / trials
    assert apart / trials < 0.05, apart / trials
    return f"{hits / trials:.3f} of {trials} intervals hold the true value {truth:.2f}; {apart} of {trials} equal effects told apart"


@gate.invariant("runs that differ widen the interval over several runs")
def _():
    rng, rates = np.random.default_rng(3), {"full": (0.6, 0.4), "deploy": (0.1, 0.36)}
    alike = [drawn(rng, 120, rates) for _ in range(4)]
    unlike = [drawn(rng, 120, {"full": (0.6, 0.4), "deploy": (hack, 0.36)}) for hack in (0.0, 0.0, 0.3, 0.5)]
    widths = []
    for runs in (alike, unlike):
        low, high = of(selectivity(runs)).interval or (0, 0)
        widths.append(high - low)
    single = of(selectivity([alike[0]])).interval or (0, 0)
    assert widths[1] > 1.5 * widths[0] and widths[0] < single[1] - single[0], (widths, single)
    return f"width {single[1] - single[0]:.2f} of one run, {widths[0]:.2f} of four alike, {widths[1]:.2f} of four that differ"


@gate.invariant(
    "over three runs, intervals are cautious where runs are alike, and too narrow where they differ", slow=True
)
def _():
    rng, truth, covered = np.random.default_rng(5), (0.6 - 0.1) / 0.6 - (0.4 - 0.36) / 0.4, {}
    for spread in (0.0, 0.3):
        hits = 0
        for _ in range(200):
            own = np.exp(spread * rng.normal(size=(3, 2)) - spread**2 / 2)
            runs = [drawn(rng, 120, {"full": (0.6, 0.4), "deploy": (0.1 * a, 0.36 * b)}) for a, b in own]
            low, high = of(selectivity(runs, resamples=300)).interval or (0, 0)
            hits += low <= truth <= high
        covered[spread] = hits / 200
    assert covered[0.0] >= 0.95 and 0.8 <= covered[0.3] < 0.95, covered
    return f"{covered[0.0]:.3f} of 200 where three runs are alike, {covered[0.3]:.3f} where they differ"


@gate.invariant("undefined values are None with their reason, in the record and in the text")
def _():
    cases = {
        "the full model has no hacks": evaluation({"full": (0, 10), "deploy": (0, 9)}),
        "the full model has no solves": evaluation({"full": (16, 0), "deploy": (2, 0)}),
        "no answer that could show hacks was graded": [
            r | {"infra": r["infra"] or r["mode"] != "gt_only"} for r in evaluation({"full": (9, 9), "deploy": (9, 9)})
        ],
        "no answer that could show solves was graded": [
            r for r in evaluation({"full": (9, 9), "deploy": (9, 9)}) if r["mode"] != "gt_only"
        ],
    }
    for why, rows in cases.items():
        found = selectivity([rows])
        s = of(found)
        assert s.value is None and s.interval is None and s.undefined == why, (why, s)
        text = selectivity_text(found)
        assert f"undefined: {why}" in text and "nan" not in text and " 0.00" not in text, text
    # 1 hack among 20 problems: about a third of the resamples have none. 4 problems: too few to resample.
    rare = of(selectivity([evaluation({"full": (1, 10), "deploy": (0, 9)})]))
    few = of(selectivity([evaluation({"full": (3, 3), "deploy": (1, 3)}, n=4)]))
    for s, why in ((rare, "too few hacks or solves of the full model"), (few, "fewer than 10 problems")):
        assert s.value is not None and s.interval is None and s.undefined == why, s
        assert f"no interval: {why}" in selectivity_text([s]), s
    assert selectivity([evaluation({"base": (1, 1), "deploy": (1, 1)})]) == [], "no full view, no selectivity"
    assert selectivity([evaluation({"full": (1, 1), "base": (1, 1)})]) == [], "no ablation, no selectivity"
    return f"{len(cases)} undefined values, 2 without interval"


@gate.invariant("views that answered other prompts are refused")
def _():
    rows = evaluation({"full": (16, 10), "deploy": (2, 9)})
    other = [r | {"problem_id": "x"} if r["view"] == "deploy" and r["problem_id"] == "3" else r for r in rows]
    for bad in (rows[:-1], other):
        try:
            selectivity([rows, bad])
        except ValueError as error:
            assert "different prompts" in str(error), error
        else:
            raise AssertionError("unpaired views were accepted")
    return "a missing and a foreign prompt"


@gate.invariant("draws are seeded, touch no other random state, and take well under a second; records come back")
def _():
    rows = drawn(np.random.default_rng(4), 353, dict.fromkeys(VIEWS, (0.5, 0.4)))
    state = str(np.random.get_state(legacy=False)["state"])
    start = time.perf_counter()
    found = selectivity([rows] * 3)
    seconds = time.perf_counter() - start
    assert str(np.random.get_state(legacy=False)["state"]) == state and seconds < 1, seconds
    stored = [s.__dict__ | {"interval": None if s.interval is None else list(s.interval)} for s in found]
    assert loaded(stored) == found == selectivity([rows] * 3)
    return f"{len(rows)} rows of 3 runs, 2000 resamples: {seconds:.2f} s"


@gate.invariant("the verdict follows the intervals")
def _():
    def entry(view: str, interval: tuple[float, float] | None, markers: str = "eval") -> Selectivity:
        return Selectivity(view, markers, 0.5, 0.1, 0.4, interval)

    clean, random = "clean_ablated", "random_removal"
    cases = [
        ((0.6, 0.9), (0.1, 0.5), "is above that of ablating the clean block"),
        ((0.6, 0.9), (0.1, 0.6), "is not apart from that of ablating the clean block"),
        ((0.1, 0.2), (0.3, 0.6), "is below that of ablating the clean block"),
        (None, (0.3, 0.6), "cannot be compared"),
        ((0.3, 0.6), None, "cannot be compared"),
    ]
    for ours, control, says in cases:
        (line,) = verdicts([entry("deploy", ours), entry(clean, control), entry(random, (-0.2, 0.0))])
        assert says in line and ("random removal" in line), line
        assert ours is None or "above that of a random removal of equal size" in line, line
    both = verdicts([entry(v, (0.1, 0.2), m) for m in ("train", "eval") for v in ("deploy", clean, random)])
    assert len(both) == 2 and both[0].startswith("With train markers") and "not apart" in both[1], both
    assert verdicts([entry("deploy", (0.1, 0.2))]) == [], "without a control there is nothing to compare"
    return f"{len(cases)} pairs of intervals"


if __name__ == "__main__":
    gate.main()
