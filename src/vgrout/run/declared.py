"""The one declared table of metric columns, section by section. A run can log what is declared here and nothing else.

To add a column, add one entry here or in `run/declared_route.py`, and renew docs/metrics.md, which is made from this table,
with scripts/make_metrics_page.py. Loophole modes are handed in by the caller, so that they stay declared in one place.
"""

from __future__ import annotations

from collections.abc import Sequence

from vgrout.run.columns import ANYTHING, COUNT, Column, column
from vgrout.run.declared_route import DIRECTION, GATE, NO_UPDATE, ROUTE, ROUTER

LOGITS = 1e-3
"""A log-probability is a difference of two fp32 numbers of the logits' size."""

NO_STUDENTS = "no graded student row"
NO_TEACHERS = "no graded teacher row"
NO_FORWARD = "no row was forwarded"
NO_QUARANTINE = "the run trains no quarantine block"
NO_PAIRS = "the intervention reads no pairs in the step"
NO_SHAPING = "the intervention leaves rewards as they are"
NO_ANCHORS = "anchor texts are off"

_REWARDS = (
    column("step", "step, counted from 0", "steps", "d"),
    column("reward", "mean reward of all graded rows, as the environment pays it", "reward", ".3f", "no graded row"),
    column("reward_student", "mean reward of the student rows", "reward", ".3f", NO_STUDENTS, "rew_s"),
    column("n_shaped", "rows whose reward the intervention changed or left out", "rows", "d", NO_SHAPING, "shaped"),
    column(
        "reward_shift",
        "mean change of the kept rows' rewards by the intervention",
        "reward",
        ".3f",
        f"{NO_SHAPING}, or kept no row",
        "shift",
        range=ANYTHING,
    ),
)

_HACK, _SOLVE = "were paid for a wrong answer", "the strict oracle finds correct"
_RATES = (
    column("hack_student", f"student rows that {_HACK}", "share", ".3f", NO_STUDENTS, "hack_s"),
    column("solve_student", f"student rows that {_SOLVE}", "share", ".3f", NO_STUDENTS, "solve_s"),
    column("hack_teacher", f"teacher rows that {_HACK}", "share", ".3f", NO_TEACHERS, "hack_t"),
    column("solve_teacher", f"teacher rows that {_SOLVE}", "share", ".3f", NO_TEACHERS, "solve_t"),
    *(
        column(
            f"{rate}_{view}",
            f"{rate}_student of the {kind} rows sampled {acting}",
            "share",
            ".3f",
            f"no graded {kind} student row sampled in the {view} view",
        )
        for view, acting in (("full", "with both blocks"), ("deploy", "quarantine-ablated"))
        for rate, kind in (("hack", "hinted"), ("solve", "hint-free"))
    ),
)

_ROWS = (
    column("n_infra", "rows masked because the grader failed for reasons of the machine", "rows", "d", "", "infra"),
    column("n_zero_groups", "groups without reward spread, which teach nothing", "groups", "d", "", "zero_g"),
    column("n_rows_trained", "rows that reached the backward", "rows", "d", "", "rows"),
    column("n_discarded", "rows whose route lets no block learn", "rows", "d", "", "discard"),
    column("format_rate", "student rows with a fenced Python block", "share", ".3f", NO_STUDENTS, "format"),
    column("length_mean", "mean completion length of the student rows", "tokens", ".1f", NO_STUDENTS, "length"),
    column("truncated_share", "student rows cut at max_new", "share", ".3f", NO_STUDENTS, "trunc"),
)

_GRADIENT = (
    column("loss", "policy loss plus the KL term", "loss", ".4f", NO_UPDATE),
    column("grad_norm", "norm of the routed gradient before clipping", "norm", ".2e", NO_UPDATE, "gnorm"),
    column("grad_norm_deployed", "its part in the deployed block", "norm", ".2e", NO_UPDATE, "gnorm_d"),
    column(
        "grad_norm_quarantine",
        "its part in the quarantine block",
        "norm",
        ".2e",
        f"{NO_QUARANTINE}, or {NO_UPDATE}",
        "gnorm_q",
    ),
    column(
        "qmass",
        "the quarantine's part: norm g_q / (norm g_d + norm g_q)",
        "share",
        ".3f",
        f"{NO_QUARANTINE}, or the gradient is 0",
    ),
    column(
        "qmass_update",
        "qmass of the update that is applied, after Adam",
        "share",
        ".3f",
        f"{NO_QUARANTINE}, or the update is 0",
        "qm_upd",
    ),
    column("lr", "learning rate of this step", "1", ".1e", range=COUNT),
)

_LOGPS = (
    *(
        column(
            f"lp_{source}",
            f"mean over forwarded {source} rows of the row's mean token log-prob",
            "nats",
            ".3f",
            f"no {source} row was forwarded",
            f"lp_{source[0]}",
            range="(-inf, 0]",
            rounding=LOGITS,
        )
        for source in ("student", "teacher")
    ),
    column(
        "kl",
        "k3 estimate of the KL to the base view, per token",
        "nats",
        ".2e",
        f"beta is 0, or {NO_FORWARD}",
        range=COUNT,
        rounding=1e-6,
    ),
    column("clip_frac", "forwarded tokens that the ratio clip cuts off", "share", ".3f", NO_FORWARD, "clip"),
    *(
        column(
            f"ratio_{zone}",
            f"mean over the rows that share_{zone} counts of the row's mean token ratio to its sampling view",
            "ratio",
            ".3f",
            f"share_{zone} counts no row",
            f"rho_{zone[0]}",
        )
        for zone in ("keep", "mid", "rout")
    ),
    column(
        "sampler_gap_mean",
        "mean over rows of the row's mean |sampler - trainer log-prob| of a token",
        "nats",
        ".1e",
        "no sampled row was forwarded",
        "gap",
        range=COUNT,
    ),
    column(
        "sampler_gap_max",
        "largest |sampler - trainer log-prob| of a token",
        "nats",
        ".1e",
        "no sampled row was forwarded",
        "gap_max",
        range=COUNT,
    ),
    column(
        "anchor_lp",
        "mean log-prob of a token of the fixed anchor texts, both blocks acting",
        "nats",
        ".3f",
        NO_ANCHORS,
        range="(-inf, 0]",
        rounding=LOGITS,
    ),
    column(
        "anchor_drop",
        "how far anchor_lp lies below the best one of the run so far",
        "nats",
        ".3f",
        NO_ANCHORS,
        "drop",
        range=COUNT,
    ),
)

_SECONDS = (
    column("seconds_generate", "wall time of sampling", "s", ".2f", "", "gen_s"),
    column("seconds_grade", "wall time spent waiting for grades", "s", ".2f", "", "grade_s"),
    column("seconds_observe", "wall time of the pass that reads features without gradient", "s", ".2f", "", "obs_s"),
    column("seconds_pairs", "wall time, inside the update, of passes over the pairs", "s", ".2f", NO_PAIRS, "pairs_s"),
    column("seconds_update", "wall time of forward, backward and optimizer", "s", ".2f", "", "upd_s"),
    column("seconds_direction", "wall time of renewing the direction", "s", ".2f", "", "dir_s"),
    column("seconds_total", "wall time of the whole step", "s", ".2f", "", "sec"),
)


def sections(modes: Sequence[str]) -> dict[str, tuple[Column, ...]]:
    """The columns under their headings, in file order, with hack and solve of the student rows of each mode of `modes`."""
    per_mode = [
        column(f"{rate}_{mode}", f"{rate}_student of the rows in mode {mode}", "share", ".3f", f"{NO_STUDENTS} in mode {mode}")
        for mode in modes
        for rate in ("hack", "solve")
    ]  # fmt: skip
    return {
        "Rewards": _REWARDS,
        "Hacks and solves": (*_RATES, *per_mode),
        "Rows": _ROWS,
        "Loss and gradient": _GRADIENT,
        "Log-probabilities": _LOGPS,
        "Route": ROUTE,
        "Direction": DIRECTION,
        "Gate": GATE,
        "Router": ROUTER,
        "Time": _SECONDS,
    }


def columns(modes: Sequence[str]) -> tuple[Column, ...]:
    """All declared columns in file order."""
    table = tuple(c for section in sections(modes).values() for c in section)
    names = [c.name for c in table]
    if len(set(names)) != len(names):
        raise ValueError(f"a column is declared twice: {sorted({n for n in names if names.count(n) > 1})}")
    return table
