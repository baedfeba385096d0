"""Every arm there is in the micro world: what `vgrout demo --every` runs, and which of its arms are compared."""

from __future__ import annotations

from vgrout.study.arms import DEMO, NONE, ROUTES, Arm

UNROUTED = (
    NONE,
    Arm("none_full", "none_full"),
    Arm("none-delta_s", "none", adapter="delta_s", options=NONE.options),
    Arm("erase", "erase"),
    Arm("advantage_mod", "advantage_mod", options={"extraction.measure": False}),
    Arm("penalty", "penalty"),
    Arm("screening", "screening"),
    Arm("inoculation", "none", options={**NONE.options, "env.inoculation": "pass_test"}),
)
"""What is done about hacking without a second block that ships nowhere."""

CURVE = tuple(
    ROUTES[0]
    if (recall, alarm) == (1.0, 0.0)
    else Arm(
        f"label_route-recall{100 * recall:.0f}-alarm{100 * alarm:.0f}",
        "label_route",
        {**ROUTES[0].settings, "recall": recall, "false_alarm": alarm},
        ROUTES[0].grpo,
    )
    for alarm in (0.0, 0.1)
    for recall in (1.0, 0.7, 0.5)
)
"""True labels made worse on purpose: how good a gate would have to be."""

GATES = ("routeV", "routeA", "moe")
UNMEASURED = {"extraction.measure": False}
"""Without cin and cout, which cost a backward over the pairs at each renewal."""
SOURCES = {
    "real": "real",
    "haar": "haar:{seed}",
    "shuffled": "shuffled:{seed}",
    "content": "content:micro_placebo_style",
    "random_label": "random_label",
}
"""Each seed's run has a placebo draw of its own."""
UNSEEN, OTHER_PAIRS = "stdout_marker", "micro@run_tests,micro@proxy"
"""A loophole that the pairs cover, and the pairs of all other families."""


def _gate_arms(gate: str) -> tuple[Arm, ...]:
    cells = [("real", "block"), ("real", "group"), ("haar", "block"), ("haar", "group")]
    cells += [(source, "block") for source in ("shuffled", "content", "random_label")]
    return tuple(
        Arm(
            f"{gate}-{source}-{baseline}",
            gate,
            grpo={"advantage_baseline": baseline},
            options={"direction": SOURCES[source], **UNMEASURED},
        )
        for source, baseline in cells
    )


GATED = tuple(arm for gate in GATES for arm in _gate_arms(gate))
LEFT_OUT = tuple(
    Arm(
        f"{gate}-without-{UNSEEN}",
        gate,
        grpo={"advantage_baseline": "block"},
        options={"pairs": OTHER_PAIRS, **UNMEASURED},
        unseen=UNSEEN,
    )
    for gate in GATES
)
DESIGNS = tuple(
    Arm(f"{gate}-{design}", gate, design=design, options=UNMEASURED)
    for gate, design in (
        ("routeV", "three-way-two-pass"),
        ("routeV", "v1-ramp"),
        ("routeA", "live-quantile"),
        ("moe", "evil-moe"),
    )
)

EVERY = (*UNROUTED, DEMO[1], *ROUTES, *(arm for arm in CURVE if arm not in ROUTES), *GATED, *LEFT_OUT, *DESIGNS)
"""In the order of the table."""

COMPARISONS = (
    *((f"{gate}-real-block", f"{gate}-{other}-block") for gate in GATES for other in SOURCES if other != "real"),
    *((f"{gate}-real-group", f"{gate}-haar-group") for gate in GATES),
)
"""(real, placebo): pairs of arms that differ in the direction alone."""
UNSEEN_COMPARISONS = tuple((f"{gate}-without-{UNSEEN}", f"{gate}-real-block") for gate in GATES)
"""(a loophole left out of the pairs, all pairs)."""
