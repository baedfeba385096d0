"""Gate: a metric is what its column declares, and undefined is never 0.

Invariants:
- every column has a range; a value just outside is refused by name, the ends and the stated rounding are taken
- in steps of every kind, a column is null exactly where its text says so; all others hold a number of their range
- a run has rates of the extra modes that it trains on, and no other columns than before without them
- the ratio of each zone is that of plain forwards; where one forward serves as both it is exactly 1
- docs/metrics.md is made from the declared columns, each of which is there once
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from _gate import Gate
from _metric_steps import FLAT, ONE_HACK, Case, taken, verdict
from _mixed_step import LABEL_ROUTE, STEP, in_view, run, settings
from _runs import refused
from make_metrics_page import PAGE, page
from vgrout.env.modes import EXTRA, LOOPHOLES, STANDARD
from vgrout.env.verdicts import Verdicts
from vgrout.interventions.label_route import LabelRouteSettings
from vgrout.measure import COLUMNS, columns_of, step_row
from vgrout.run.columns import ANYTHING, Column, check_row, interval
from vgrout.run.page import RENEW
from vgrout.types import StepRow

gate = Gate(__doc__)

UNBOUNDED = ("reward_shift", "loss", "gate_p10", "gate_p50", "gate_p90", "score_student", "score_teacher",
             "router_scale", "router_bias")  # fmt: skip


@gate.invariant("every column has a range: just outside is refused by name, the ends and the stated rounding are taken")
def _():
    step, ends = COLUMNS[0], 0
    assert tuple(c.name for c in COLUMNS if c.range == ANYTHING) == UNBOUNDED
    for column in COLUMNS[1:]:

        def check(value: float, column: Column = column) -> None:
            check_row(StepRow(0, {column.name: value}), (step, column))

        found = interval(column.range)
        for end, is_open, way in ((found.low, found.open[0], -1), (found.high, found.open[1], 1)):
            if math.isinf(end):
                check(way * 1e30)
                continue
            ends += 1
            outside = end if is_open else end + way * (column.rounding + 1e-9)
            message = refused(ValueError, f"metrics: {column.name} is ", lambda v=outside: check(v))
            assert f"outside its range {column.range}" in message and ("rounding" in message) == bool(column.rounding)
            check(end - way * 1e-9 if is_open else end + way * 0.99 * column.rounding)
            assert check_row(StepRow(0, {column.name: end}), (step, column)) if not is_open else True
    refused(ValueError, "step is -1", lambda: check_row(StepRow(-1, {}), (step,)))
    wrong = ("", "[0, 1", "[1, 0]", "[-inf, 0]", "(0, inf]", "[0,1]", "[a, b]", "0, 1")
    for text in wrong:
        refused(ValueError, "", lambda text=text: interval(text))
    stored = json.loads(json.dumps([asdict(column) for column in COLUMNS]))
    assert tuple(Column(**fields) for fields in stored) == COLUMNS
    del stored[0]["range"], stored[0]["rounding"]
    assert Column(**stored[0]).range == ANYTHING, "run folders from before ranges were declared can be read"
    return f"{len(COLUMNS)} columns, {ends} finite ends, {len(UNBOUNDED)} without any; {len(wrong)} malformed ranges"


GROUPS = {
    "graded": "reward",
    "students": "reward_student hack_student solve_student format_rate length_mean truncated_share",
    "teachers": "hack_teacher solve_teacher",
    "hinted": "hack_full hack_deploy",
    "free": "solve_full solve_deploy",
    **{mode: f"hack_{mode} solve_{mode}" for mode in STANDARD},
    "forward": "clip_frac",
    "forward_s": "lp_student sampler_gap_mean sampler_gap_max",
    "forward_t": "lp_teacher",
    "kl": "kl",
    "anchors": "anchor_lp anchor_drop",
    "update": "loss grad_norm grad_norm_deployed",
    "quarantine": "grad_norm_quarantine qmass",
    "moved": "qmass_update",
    "taught": "share_keep share_mid share_rout",
    **{zone: f"ratio_{zone}" for zone in ("keep", "mid", "rout")},
    "cin": "cin cin_null cin_cos cin_cos_null cout frac_fired frac_modules",
    "cin_s": "cin_s",
    "cin_t": "cin_t",
    "cout_update": "cout_update",
    "direction": "direction_age direction_axes direction_skipped",
    "overlap": "direction_overlap",
    "scores": "gate_p10 gate_p50 gate_p90",
    "score_s": "score_student",
    "score_t": "score_teacher",
    "labels": "gate_auroc gate_f05",
    "edges": "gate_lower gate_upper",
    "gate": "gate_modules",
    "router": "router_grad_pin pin_loss router_scale router_bias",
    "router_grpo": "router_grad_grpo",
    "shaped": "n_shaped",
    "shift": "reward_shift",
    "pairs": "seconds_pairs",
}
"""Columns that are undefined together."""

ROWS = "graded students hinted free run_tests gt_only "
IDLE = ROWS + "direction "
LEARNS = IDLE + "forward forward_s update taught "
ALONG = "cin cin_s cout_update "
PLAIN = LEARNS + ALONG + "keep "
BOTH = LEARNS + "quarantine moved "
SCORED = "scores score_s labels "
ALL = tuple(range(6))

CASES = (
    Case("none", "none", PLAIN),
    Case("no direction", "none", ROWS + "forward forward_s update taught keep", direction=False),
    Case("anchors and KL", "none", PLAIN + "anchors kl", beta=0.1),
    Case("other modes", "none", PLAIN.replace("free run_tests gt_only", "sentinel stdout_marker"),
         modes=("sentinel", "stdout_marker")),
    Case("one mode more", "none", PLAIN.replace("free run_tests gt_only", "file_marker"), modes=("file_marker", "file_marker")),
    Case("idle", "none", IDLE, FLAT),
    Case("idle, two blocks", "none_full", IDLE, FLAT),
    Case("KL alone", "none", PLAIN.replace("taught", "kl").replace("keep", ""), FLAT, beta=0.1,
         options={"kl_on_zero_spread": True}),
    Case("all masked", "none", "direction", masked=ALL),
    Case("teachers too", "none", PLAIN + "teachers forward_t cin_t", teachers=(0, 1)),
    Case("teachers alone", "none", "graded teachers direction forward forward_t update taught keep cin cin_t cout_update",
         teachers=ALL),
    Case("renewed", "erase", PLAIN + "overlap", steps=2),
    Case("both blocks", "absorb", BOTH + ALONG + "keep mid"),
    Case("labels", "label_route", BOTH + ALONG + "keep rout"),
    Case("all discarded", "label_route", IDLE + "forward forward_s", ONE_HACK),
    Case("gate", "routeV", BOTH + SCORED + "gate edges keep mid rout", settings={"edges": "mean"}),
    Case("live gate, still empty", "routeV", BOTH + SCORED + "gate keep mid", settings={"edges": "live"}),
    Case("idle gate", "routeV", IDLE, FLAT, settings={"edges": "mean"}),
    Case("gate on activations", "routeA", BOTH + SCORED + "score_t teachers forward_t gate edges pairs keep mid",
         teachers=(0,), settings={"edges": "mean"}),
    Case("router", "moe", BOTH + SCORED + "router router_grpo pairs mid", settings={"soft": "published"}),
    Case("idle router", "moe", IDLE + "scores score_s router pairs", FLAT),
    Case("shaped", "advantage_mod", PLAIN + "shaped shift"),
    Case("shaped, all masked", "penalty", "direction shaped", masked=ALL),
)  # fmt: skip


@gate.invariant(
    "in steps of every kind a column is null exactly where its text says so, and else a number of its range",
    slow=True,
)
def _():
    may = {c.name for c in COLUMNS if c.undefined}
    grouped = [name for names in GROUPS.values() for name in names.split()]
    assert len(grouped) == len(set(grouped)) and set(grouped) == may, set(grouped) ^ may
    seen: dict[str, set[bool]] = {name: set() for name in may}
    for case in CASES:
        row, _ = taken(case)
        values = check_row(row, COLUMNS)
        expected = {name for group in case.defined.split() for name in GROUPS[group].split()}
        found = {name for name in may if values[name] is not None}
        assert found == expected, f"{case.name}: also {sorted(found - expected)}, without {sorted(expected - found)}"
        for name in may:
            seen[name].add(name in found)
    assert all(both == {True, False} for both in seen.values()), [n for n, both in seen.items() if len(both) < 2]
    return f"{len(CASES)} steps, {len(may)} columns, each null in one and a number in another"


@gate.invariant("a run has rates of the extra modes that it trains on, and no other columns than before without them")
def _():
    assert columns_of(LOOPHOLES) == columns_of(("sentinel",)) == COLUMNS
    case = Case("extra", "none", "", modes=("exit_code", "gt_only"))
    for mode in EXTRA:
        declared = columns_of(("run_tests", mode))
        assert {c.name for c in declared} - {c.name for c in COLUMNS} == {f"hack_{mode}", f"solve_{mode}"}
        assert all(c in declared for c in COLUMNS)
        values = check_row(taken(case, declared)[0], declared)
        assert (values[f"hack_{mode}"] is None) == (mode != "exit_code"), values
    assert "hack_exit_code" not in taken(case)[0].values
    return f"{len(COLUMNS)} columns, two more for each of {', '.join(EXTRA)}"


@gate.invariant("the ratio of each zone is that of plain forwards; where one forward serves as both it is exactly 1")
def _():
    lines = []
    verdicts = Verdicts(STEP.groups, {r.id: verdict(0.5) for r in STEP.rollouts})
    for clean in ("zeroed", "detached"):
        stats, _ = run(LabelRouteSettings(clean=clean), settings("group"))
        values = step_row(0, verdicts, stats, {}, beta=0.0).values
        means: dict[str, list[float]] = {"keep": [], "rout": []}
        for rollout, label, advantage in zip(STEP.rollouts, LABEL_ROUTE, stats.advantages, strict=True):
            # Zeroed clean rows run without the quarantine, hacks with it, whatever they were sampled in.
            view = rollout.view if clean == "detached" else "deploy" if label == "clean" else "full"
            if advantage and not (clean == "detached" and label == "hack" and view == "deploy"):
                ratio = (in_view(rollout, view) - in_view(rollout, rollout.view)).detach().exp().mean()
                means["keep" if label == "clean" else "rout"].append(float(ratio))
        for zone, ratios in means.items():
            found, mean = values[f"ratio_{zone}"], sum(ratios) / len(ratios)
            assert found is not None and abs(found - mean) < 1e-9, (clean, zone, found, mean)
            assert (found == 1.0) == (clean == "detached")
            lines.append(f"{clean} {zone} {found:.3f}")
        assert values["ratio_mid"] is None
    return ", ".join(lines)


@gate.invariant("docs/metrics.md is made from the declared columns, each of which is there once")
def _():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), f"{PAGE} is stale: renew it with `{RENEW}`"
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == [c.name for c in COLUMNS]
    assert all(line.replace("\\|", "").count("|") == 7 for line in rows), "a cell holds a bar"
    assert RENEW in text and (PAGE.parents[1] / RENEW.split()[1]).is_file()
    return f"{len(rows)} columns in {text.count('## ')} sections"


if __name__ == "__main__":
    gate.main()
