"""Metric columns of the parts of the method: route, direction, gate, router. See `run/declared.py`."""

from __future__ import annotations

from vgrout.run.columns import ANYTHING, COUNT, column

BF16 = 0.01
"""Axes are stored in the model's type: in bf16 each entry is off by up to 2^-9, so a unit vector's square by up to 2^-8."""

NO_UPDATE = "no row taught a block"
NO_ADVANTAGE = "no row of non-zero advantage taught a block"
NO_MEASURE = "the run measures along no direction, or the gradient is 0"
NO_DIRECTION = "the run has no direction"
NO_SCORE = "the run has no gate or router, or no row was scored"
NO_GATE = "the run has no gate, or no row was scored"
NO_EDGES = f"{NO_GATE}, or live edges remember nothing yet"
NO_LABELS = "the run has no gate or router, or not both hacks and other rows among the scored ones"
NO_ROUTER = "the run has no router"

ROUTE = tuple(
    column(f"share_{zone}", f"trained rows that teach {what}", "share", ".3f", NO_ADVANTAGE, zone)
    for zone, what in (
        ("keep", "the deployed block alone"),
        ("mid", "both blocks"),
        ("rout", "the quarantine alone"),
    )
)

DIRECTION = (
    column(
        "cin",
        "mean over modules of |relu(V g)| / |g|: the gradient's part along the direction",
        "share",
        ".3f",
        NO_MEASURE,
        rounding=BF16,
    ),
    column(
        "cin_null",
        "cin of a gradient that has nothing to do with V: sqrt(k / 2d)",
        "share",
        ".3f",
        NO_MEASURE,
        "cin_0",
        range="(0, 1)",
    ),
    column(
        "cin_cos",
        "mean cosine of the gradient with each module's first axis",
        "cosine",
        ".3f",
        NO_MEASURE,
        rounding=BF16,
    ),
    column(
        "cin_cos_null",
        "its standard deviation for a random axis: 1 / sqrt(d)",
        "cosine",
        ".3f",
        NO_MEASURE,
        "cos_0",
        range="(0, 1]",
    ),
    *(
        column(
            f"cin_{source[0]}",
            f"cin of the {source} rows' part of the gradient",
            "share",
            ".3f",
            f"{NO_MEASURE}, or no {source} row taught a block",
            rounding=BF16,
        )
        for source in ("student", "teacher")
    ),
    column("cout", "cin after the intervention has edited the gradient", "share", ".3f", NO_MEASURE, rounding=BF16),
    column(
        "cout_update",
        "cin of the update that was applied, as the step -U",
        "share",
        ".3f",
        "the run measures along no direction, or the update is 0",
        "cout_u",
        rounding=BF16,
    ),
    column("frac_fired", "axes along which the gradient is positive", "share", ".3f", NO_MEASURE, "fired"),
    column("frac_modules", "modules with such an axis", "share", ".3f", NO_MEASURE, "fired_m"),
    column("direction_age", "updates since the direction was extracted", "steps", "d", NO_DIRECTION, "dir_age"),
    column(
        "direction_overlap",
        "mean squared cosine of the principal angles to the one before",
        "share",
        ".3f",
        f"{NO_DIRECTION}, or not renewed yet",
        "overlap",
        rounding=BF16,
    ),
    column("direction_axes", "axes in use over all modules", "axes", "d", NO_DIRECTION, "axes"),
    column(
        "direction_skipped", "modules without an axis above the noise floor", "modules", "d", NO_DIRECTION, "skipped"
    ),
)

GATE = (
    column(
        "gate_auroc",
        "AUROC of the gate's score for hacks (a measurement; no update sees it)",
        "share",
        ".3f",
        NO_LABELS,
        "auroc",
    ),
    column("gate_f05", "F0.5 of the rows that the gate calls hack (a measurement)", "share", ".3f", NO_LABELS, "f0.5"),
    *(
        column(f"gate_p{q}", f"{q}th percentile of the step's scores", "score", ".3f", NO_SCORE, f"g{q}")
        for q in (10, 50, 90)
    ),
    column(
        "gate_lower",
        "lower edge of the gate: of live edges the cut, else the mean over modules",
        "cosine",
        ".3f",
        NO_EDGES,
        "g_lo",
        rounding=1e-5,
    ),
    column("gate_upper", "upper edge of the gate", "cosine", ".3f", NO_EDGES, "g_hi", rounding=1e-5),
    column("gate_modules", "modules that the gate reads: those with a band", "modules", "d", NO_GATE, "g_mod"),
    *(
        column(
            f"score_{source}",
            f"mean score of the {source} rows; of moe the router's weight w",
            "score",
            ".3f",
            f"{NO_SCORE}, or no {source} row",
            f"score_{source[0]}",
        )
        for source in ("student", "teacher")
    ),
)

ROUTER = (
    column(
        "router_grad_grpo",
        "norm of the router's gradient from the GRPO loss",
        "norm",
        ".1e",
        f"{NO_ROUTER}, or {NO_UPDATE}",
        "r_grpo",
    ),
    column("router_grad_pin", "norm of the router's gradient from the pin loss", "norm", ".1e", NO_ROUTER, "r_pin"),
    column("pin_loss", "binary cross-entropy of the router on the pairs", "nats", ".3f", NO_ROUTER, "pin", range=COUNT),
    column("router_scale", "the router's factor a", "1", ".2f", NO_ROUTER, "r_a", range=ANYTHING),
    column("router_bias", "the router's offset b", "1", ".2f", NO_ROUTER, "r_b", range=ANYTHING),
)
