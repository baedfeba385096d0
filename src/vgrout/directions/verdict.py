"""From the numbers of a check to words: a sentence by declared rules, and the table of the terminal.

The sentence names each part that was measured, with its decisive figures, as passed or not: held-out pairs (routing and
erase coordinates), left-out pairs, rollouts by gradient and by activation. What follows it are warnings: another rule
each, printed only where the numbers call for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vgrout.directions.assessment import ALL, OVERALL, Detection, GroupResult
from vgrout.directions.check import HeldOut, LeaveOneOut

FEATURES = {"gradient": "v_grad, gradients", "activation": "v_act, activations"}


@dataclass(frozen=True)
class CheckResult:
    """Everything that a check found."""

    heading: dict[str, Any]
    """What was checked: plain data."""
    held_out: dict[str, HeldOut]
    """By coordinates: routing, erase."""
    leave_one_out: LeaveOneOut
    detection: dict[str, Detection] = field(default_factory=dict)
    """By feature: gradient, activation. Empty without rollouts."""

    @property
    def passed(self) -> dict[str, bool]:
        """By part."""
        found = {f"held_out_{name}": part.passed for name, part in self.held_out.items()}
        found["leave_one_out"] = self.leave_one_out.passed
        return found | {f"rollouts_{name}": part.passed for name, part in self.detection.items()}


def short(value: float | None) -> str:
    """`.93`, `1.00`, `-.08`; `-` where undefined."""
    if value is None or value != value:
        return "-"
    text = f"{value:.2f}"
    return "0.00" if text in ("-0.00", "0.00") else text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def band(found: Sequence[float | None]) -> str:
    """`.41-.60` of percentiles 2.5, 50, 97.5."""
    return f"{short(found[0])}-{short(found[-1])}"


def sentence(result: CheckResult) -> str:
    """The verdict in plain words."""
    parts = [(part.passed, _held_out(name, part)) for name, part in result.held_out.items()]
    parts.append((result.leave_one_out.passed, _left_out(result.leave_one_out)))
    parts += [(part.passed, _rollouts(name, part)) for name, part in result.detection.items()]
    won, lost = ([text for passed, text in parts if passed is kind] for kind in (True, False))
    if not lost:
        verdict = f"The direction beats its placebos on {_list(won, 'and')}."
    elif not won:
        verdict = f"The direction does not beat its placebos on {_list(lost, 'or')}."
    else:
        verdict = f"The direction beats its placebos on {_list(won, 'and')}, but not on {_list(lost, 'or')}."
    return " ".join([verdict, *warnings(result)])


def _list(texts: Sequence[str], word: str) -> str:
    return texts[0] if len(texts) == 1 else f"{'; '.join(texts[:-1])}; {word} {texts[-1]}"


def _held_out(name: str, part: HeldOut) -> str:
    return f"held-out pairs in {name} coordinates (fraction {short(part.fraction)} against {short(part.needed)})"


def _left_out(part: LeaveOneOut) -> str:
    of = lambda name: f"{short(part.values[name])} against {short(part.needed(name))}"  # noqa: E731
    return f"left-out pairs (hack above its clean {of('paired')}, AUROC {of('auroc')})"


def _rollouts(name: str, part: Detection) -> str:
    texts = []
    for group in OVERALL:
        if (g := part.groups.get(group)) is not None:
            every = len(g.lost_to) == 2 + len(g.contents)
            lost = f", not above {'any placebo' if every else ', '.join(g.lost_to)}" if g.lost_to else ""
            texts.append(f"{group} {short(g.auroc)}, Haar band {band(g.haar)}{lost}")
    return f"rollouts by {name} (AUROC {'; '.join(texts)})"


def warnings(result: CheckResult) -> list[str]:
    """What a reader must not overlook."""
    found = []
    for coordinates, part in result.held_out.items():
        if part.zero_norm:
            found.append(f"{part.zero_norm} modules have no mean difference in {coordinates} coordinates.")
    for name, part in result.detection.items():
        if any(not g.beats_length for key, g in part.groups.items() if key in OVERALL):
            figures = ", ".join(f"{short(g.length)} {key}" for key, g in part.groups.items() if key in OVERALL)
            found.append(f"By {name} it does not clearly beat the completion's length (AUROC {figures}).")
        yes = [kind for kind, u in part.uncovered.items() if u["detected"]]
        no = [kind for kind in part.uncovered if kind not in yes]
        if part.uncovered:
            found.append(
                f"By {name}, pairs that do not cover a mode detect {', '.join(yes) or 'none'}"
                + (f" and miss {', '.join(no)}." if no else ".")
            )
        if part.undefined.get("real"):
            found.append(f"By {name} no module has a band, so the label-free threshold is undefined.")
    return found


def table(result: CheckResult) -> str:
    """What the terminal shows."""
    lines = [f"{key}: {value}" for key, value in result.heading.items()]
    lines += ["", *_held_out_lines(result.held_out), "", *_left_out_lines(result.leave_one_out)]
    for name, part in result.detection.items():
        lines += ["", *_detection_lines(FEATURES[name], part)]
    lines += ["", *(f"{name}: {'pass' if passed else 'fail'}" for name, passed in result.passed.items())]
    return "\n".join([*lines, "", sentence(result)])


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]

    def aligned(line: Sequence[str]) -> str:
        cells = (f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join([f"{line[0]:{widths[0]}}", *cells]).rstrip()

    return [aligned(line) for line in (head, *rows)]


def _held_out_lines(parts: Mapping[str, HeldOut]) -> list[str]:
    counts, placebos = ("modules", "zero norm", "above 0"), ("bound", "Haar p95", "shuffled p95")
    head = ("held-out pairs", *counts, *placebos, "mean", "median", "null 1/sqrt(d)")
    rows = [
        (
            f"{name} coordinates",
            *(str(n) for n in (len(p.cosines), p.zero_norm)),
            *map(short, (p.fraction, p.bound, p.haar, p.shuffled, p.mean, p.median)),
            f"{p.null:.3f}",
        )
        for name, p in parts.items()
    ]
    lines = columns(head, rows)
    for name, p in parts.items():
        if p.shares:
            one, two, one_null, two_null = (f"{p.shares[k]:.3f}" for k in SHARES)
            lines.append(
                f"  {name}: share of the held-out difference in the subspace {one} one-sided (null {one_null}), "
                f"{two} two-sided (null {two_null})"
            )
    return lines


SHARES = ("one_sided", "two_sided", "one_sided_null", "two_sided_null")


def _left_out_lines(part: LeaveOneOut) -> list[str]:
    names = ("paired", "threshold", "auroc")
    head = ("leave one pair out", "hack above its clean", "parted by the others' midpoint", "AUROC")
    rows = [(f"all {len(part.hack)}", *(short(part.values[n]) for n in names))]
    rows += [(f"  {family}", *(short(v[n]) for n in names)) for family, v in part.families.items()]
    rows += [("Haar p95", *(short(part.haar[n]) for n in names))]
    rows += [("shuffled p95", *(short(part.shuffled[n]) for n in names))]
    return columns(head, rows)


def _detection_lines(title: str, part: Detection) -> list[str]:
    contents = list(part.groups[ALL].contents)
    head = (title, "hacks", "of", "AUROC", "95 %", "Haar", "shuffled", *contents, "length")
    rows = [
        (
            name,
            str(g.positives),
            str(g.n),
            short(g.auroc),
            band(g.interval),
            band(g.haar),
            band(g.shuffled),
            *(short(g.contents[c]) for c in contents),
            short(g.length),
        )
        for name, g in part.groups.items()
    ]
    lines = [*columns(head, rows), "", *_f_lines(part.groups[ALL], contents), ""]
    kinds = [name for name in part.groups if name not in OVERALL]
    for label, matrix in (("one family alone", part.families), ("without the family", part.without)):
        if kinds and matrix:
            rows = [(f"  {f}", *(short(v[k]) for k in kinds)) for f, v in matrix.items()]
            lines += columns((f"AUROC, {label}", *kinds), rows)
    uncovered = [
        (f"  {kind}", str(u["pairs"]), short(u["auroc"]), short(u["haar"]), "yes" if u["detected"] else "no")
        for kind, u in part.uncovered.items()
    ]
    if uncovered:
        lines += columns(("pairs that do not cover the mode", "pairs", "AUROC", "Haar p97.5", "detected"), uncovered)
    return [*lines, f"rank correlation of the score with completion tokens: {short(part.length_correlation)}"]


def _f_lines(g: GroupResult, contents: Sequence[str]) -> list[str]:
    cell = lambda v: band(v) if isinstance(v, list) else short(v)  # noqa: E731
    names = ("real", "haar", "shuffled", *(f"content {c}" for c in contents))
    head = ("F0.5 over all rows", "real", "Haar", "shuffled", *contents, "every row called")
    rows = [
        ("  best threshold (chosen with the labels)", *(cell(g.f_best[n]) for n in names), short(g.f_all_called)),
        ("  label-free threshold (pooled >= 1)", *(cell(g.f_edges[n]) for n in names), ""),
    ]
    return columns(head, rows)
