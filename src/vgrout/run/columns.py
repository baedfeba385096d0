"""The one declared table of metric columns. A run can log what is declared here and nothing else.

A column says what it means, its unit, how the step table prints it, and when it is undefined. Undefined values are
null in metrics.jsonl, never 0: a hack rate of a step without teacher rows is not a hack rate of zero.
To add a column, add one line. Loophole modes are handed in by the caller, so that they stay declared in one place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vgrout.types import StepRow


@dataclass(frozen=True, slots=True)
class Column:
    """One metric: `undefined` says when the value is null, and is empty where it never may be."""

    name: str
    meaning: str
    unit: str
    format: str
    undefined: str = ""
    short: str = ""
    """Heading in the step table; the name where empty."""

    @property
    def heading(self) -> str:
        return self.short or self.name

    @property
    def width(self) -> int:
        return max(len(self.heading), 6 if self.format == "d" else 8 if "e" in self.format else 7)

    def text(self, value: float | int | None) -> str:
        """The value as the step table prints it; `-` where undefined."""
        if value is None:
            return "-"
        text = f"{value:.0f}" if self.format == "d" else f"{value:{self.format}}"
        return text if len(text) <= self.width else f"{value:.0e}"


NO_STUDENTS = "no graded student row"
NO_TEACHERS = "no graded teacher row"
NO_UPDATE = "every group of the step was skipped"
NO_DIRECTION = "the run has no direction, or no gradient"
NO_QUARANTINE = "the adapter has no quarantine block, or nothing was trained"

_BEFORE_MODES = (
    Column("step", "step, counted from 0", "steps", "d"),
    Column("reward", "mean reward of all graded rows", "reward", ".3f", "no graded row"),
    Column("reward_student", "mean reward of the student rows", "reward", ".3f", NO_STUDENTS, "rew_s"),
    Column("hack_student", "student rows that were paid for a wrong answer", "share", ".3f", NO_STUDENTS, "hack_s"),
    Column(
        "solve_student", "student rows that the strict oracle finds correct", "share", ".3f", NO_STUDENTS, "solve_s"
    ),
    Column("hack_teacher", "teacher rows that were paid for a wrong answer", "share", ".3f", NO_TEACHERS, "hack_t"),
    Column(
        "solve_teacher", "teacher rows that the strict oracle finds correct", "share", ".3f", NO_TEACHERS, "solve_t"
    ),
)

_BY_VIEW = tuple(
    column
    for view, acting in (("full", "with both blocks"), ("deploy", "quarantine-ablated"))
    for column in (
        Column(
            f"hack_{view}",
            f"hack_student of the hinted rows sampled {acting}",
            "share",
            ".3f",
            f"no graded hinted student row sampled in the {view} view",
        ),
        Column(
            f"solve_{view}",
            f"solve_student of the hint-free rows sampled {acting}",
            "share",
            ".3f",
            f"no graded hint-free student row sampled in the {view} view",
        ),
    )
)

_AFTER_MODES = (
    Column("n_infra", "rows masked because the grader failed for reasons of the machine", "rows", "d", "", "infra"),
    Column("n_zero_groups", "groups without reward spread, skipped", "groups", "d", "", "zero_g"),
    Column("n_rows_trained", "rows that reached the backward", "rows", "d", "", "rows"),
    Column("n_discarded", "rows whose route lets no block learn", "rows", "d", "", "discard"),
    Column("format_rate", "student rows with a fenced Python block", "share", ".3f", NO_STUDENTS, "format"),
    Column("length_mean", "mean completion length of the student rows", "tokens", ".1f", NO_STUDENTS, "length"),
    Column("truncated_share", "student rows cut at max_new", "share", ".3f", NO_STUDENTS, "trunc"),
    Column("loss", "policy loss plus the KL term", "loss", ".4f", NO_UPDATE),
    Column("grad_norm", "norm of the routed gradient before clipping", "norm", ".2e", NO_UPDATE, "gnorm"),
    Column("grad_norm_deployed", "its part in the deployed block", "norm", ".2e", NO_UPDATE, "gnorm_d"),
    Column("grad_norm_quarantine", "its part in the quarantine block", "norm", ".2e", NO_QUARANTINE, "gnorm_q"),
    Column("qmass", "norm g_q / (norm g_d + norm g_q)", "share", ".3f", NO_QUARANTINE),
    Column("lr", "learning rate of this step", "1", ".1e"),
    Column(
        "kl", "k3 estimate of the KL to the base view, per token", "nats", ".2e", "beta is 0 or nothing was trained"
    ),
    Column("clip_frac", "trained tokens that the ratio clip cuts off", "share", ".3f", NO_UPDATE, "clip"),
    Column(
        "sampler_gap_mean",
        "mean over rows of the row's mean |sampler - trainer log-prob| of a token",
        "nats",
        ".1e",
        NO_STUDENTS,
        "gap",
    ),
    Column("sampler_gap_max", "largest |sampler - trainer log-prob| of a token", "nats", ".1e", NO_STUDENTS, "gap_max"),
    *(
        Column(
            f"lp_{source}",
            f"mean over trained {source} rows of the row's mean token log-prob",
            "nats",
            ".3f",
            "none was trained",
            f"lp_{source[0]}",
        )
        for source in ("student", "teacher")
    ),
    Column("share_keep", "trained rows that teach the deployed block alone", "share", ".3f", NO_UPDATE, "keep"),
    Column("share_mid", "trained rows that teach both blocks", "share", ".3f", NO_UPDATE, "mid"),
    Column("share_rout", "trained rows that teach the quarantine alone", "share", ".3f", NO_UPDATE, "rout"),
    Column(
        "cin",
        "mean over modules of |relu(V g)| / |g|: the gradient's part along the direction",
        "share",
        ".3f",
        NO_DIRECTION,
    ),
    Column(
        "cin_null",
        "cin of a gradient that has nothing to do with V: sqrt(k / 2d)",
        "share",
        ".3f",
        NO_DIRECTION,
        "cin_0",
    ),
    Column("cin_cos", "mean cosine of the gradient with each module's first axis", "cosine", ".3f", NO_DIRECTION),
    Column(
        "cin_cos_null", "its standard deviation for a random axis: 1 / sqrt(d)", "cosine", ".3f", NO_DIRECTION, "cos_0"
    ),
    Column("cin_s", "cin of the student rows' part of the gradient", "share", ".3f", NO_DIRECTION),
    Column(
        "cin_t", "cin of the teacher rows' part of the gradient", "share", ".3f", NO_DIRECTION + ", or no teacher row"
    ),
    Column("cout", "cin after the intervention has edited the gradient", "share", ".3f", NO_DIRECTION),
    Column("cout_update", "cin of the update that was applied, as the step -U", "share", ".3f", NO_DIRECTION, "cout_u"),
    Column("frac_fired", "axes along which the gradient is positive", "share", ".3f", NO_DIRECTION, "fired"),
    Column("frac_modules", "modules with such an axis", "share", ".3f", NO_DIRECTION, "fired_m"),
    Column("direction_age", "updates since the direction was extracted", "steps", "d", NO_DIRECTION, "dir_age"),
    Column(
        "direction_overlap",
        "mean squared cosine of the principal angles to the one before",
        "share",
        ".3f",
        NO_DIRECTION + ", or not renewed yet",
        "overlap",
    ),
    Column("direction_axes", "axes in use over all modules", "axes", "d", NO_DIRECTION, "axes"),
    Column(
        "direction_skipped", "modules without an axis above the noise floor", "modules", "d", NO_DIRECTION, "skipped"
    ),
    Column("seconds_generate", "wall time of sampling", "s", ".2f", "", "gen_s"),
    Column("seconds_grade", "wall time spent waiting for grades", "s", ".2f", "", "grade_s"),
    Column("seconds_update", "wall time of forward, backward and optimizer", "s", ".2f", "", "upd_s"),
    Column("seconds_direction", "wall time of renewing the direction", "s", ".2f", "", "dir_s"),
    Column("seconds_total", "wall time of the whole step", "s", ".2f", "", "sec"),
)


def columns(modes: Sequence[str]) -> tuple[Column, ...]:
    """All declared columns in file order, with hack and solve of the student rows for each mode of `modes`."""
    per_mode = []
    for mode in modes:
        null = f"no graded student row in mode {mode}"
        per_mode.append(Column(f"hack_{mode}", f"hack_student of the rows in mode {mode}", "share", ".3f", null))
        per_mode.append(Column(f"solve_{mode}", f"solve_student of the rows in mode {mode}", "share", ".3f", null))
    table = (*_BEFORE_MODES, *_BY_VIEW, *per_mode, *_AFTER_MODES)
    names = [column.name for column in table]
    if len(set(names)) != len(names):
        raise ValueError(f"a column is declared twice: {sorted({n for n in names if names.count(n) > 1})}")
    return table


def check_row(row: StepRow, declared: Sequence[Column]) -> dict[str, float | int | None]:
    """The row as it is written: every declared column once, in order.

    Raises ValueError for an undeclared, missing, mistyped or wrongly null column, FloatingPointError for NaN and inf.
    """
    if "step" in row.values and row.values["step"] != row.step:
        raise ValueError(f"metrics: the row of step {row.step} holds step {row.values['step']}")
    values = {**row.values, "step": row.step}
    names = [column.name for column in declared]
    if undeclared := sorted(values.keys() - set(names)):
        raise ValueError(f"metrics: undeclared columns {undeclared}; declare each in vgrout.run.columns")
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"metrics: step {row.step} lacks the columns {missing}; an undefined value is written as None")
    for column in declared:
        _check_value(column, values[column.name], row.step)
    return {name: values[name] for name in names}


def _check_value(column: Column, value: object, step: int) -> None:
    if value is None:
        if not column.undefined:
            raise ValueError(f"metrics: {column.name} is None at step {step}, but this column is always defined")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"metrics: {column.name} is a {type(value).__name__} at step {step}, expected a number or None"
        )
    elif not math.isfinite(value):
        raise FloatingPointError(f"metrics: {column.name} is {value} at step {step}")


def legend(declared: Iterable[Column]) -> str:
    """One line per column: heading, full name, unit, meaning, and when it is undefined."""
    shown = list(declared)
    heading = max(len(column.heading) for column in shown)
    name = max(len(column.name) for column in shown)
    unit = max(len(column.unit) for column in shown)
    lines = []
    for column in shown:
        null = f" (- where {column.undefined})" if column.undefined else ""
        lines.append(f"{column.heading:{heading}}  {column.name:{name}}  {column.unit:{unit}}  {column.meaning}{null}")
    return "\n".join(lines)
