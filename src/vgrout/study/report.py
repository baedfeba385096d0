"""From a study's finished runs to its table, its figures and study.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vgrout.evals import of_split, require_schema, tabulate
from vgrout.final import tuning
from vgrout.interventions import intervention_class
from vgrout.presets import preset
from vgrout.run.console import say
from vgrout.run.disk import dumps, write_atomic
from vgrout.run.folder import EVALUATION, RunFolder
from vgrout.study.arms import Arm
from vgrout.study.every import COMPARISONS, CURVE, UNSEEN_COMPARISONS
from vgrout.study.figure import training_figure
from vgrout.study.gate_figure import gate_figure
from vgrout.study.gates import GateFigures, gate_figures
from vgrout.study.result import StudyResult
from vgrout.study.summary import ArmResult, final_table, mode_table
from vgrout.study.verdicts import placebo_lines, unseen_lines
from vgrout.study.wide import wide_table

ByArm = Sequence[tuple[Arm, Mapping[int, RunFolder]]]
"""Every arm, with its finished runs by seed."""


def read_arms(by_arm: ByArm, *, gates: bool) -> tuple[ArmResult, ...]:
    """The arms that have a finished run, with their held-out rows; with `gates`, also what the gates of routed ones did."""
    return tuple(
        ArmResult(
            arm.label,
            {seed: of_split(_evaluation(run)["rows"]) for seed, run in runs.items()},
            {seed: gate_figures(run) for seed, run in runs.items()} if gates and _routes(arm) else {},
            arm.unseen,
        )
        for arm, runs in by_arm
        if runs
    )


def write_report(result: StudyResult, by_arm: ByArm, failures: Sequence[str]) -> None:
    """Writes table.txt, table.md, figure.png, study.json and, of a study of gates, gate_quality.png; the table is printed too."""
    study, found = result.study, [(arm, list(runs.values())) for arm, runs in by_arm if runs]
    evaluations = [_evaluation(run) for _, runs in found for run in runs]
    missing = sorted({layer for evaluation in evaluations for layer in evaluation["missing_layers"]})
    notes = [f"Graded in a sandbox without {', '.join(missing)}."] if missing else []
    notes += [f"FAILED, so not in this table: {cause}" for cause in failures]
    text = _text(result, notes)
    write_atomic(result.folder / "table.txt", f"{text}\n")
    write_atomic(result.folder / "table.md", wide_table(result.base, result.arms))
    say(f"\n{text}\n")
    training_figure([(arm.label, runs) for arm, runs in found], result.rates("", "base"), result.folder / "figure.png")
    if study.gates:
        curve = {arm.label: (arm.settings.get("recall", 1.0), arm.settings.get("false_alarm", 0.0)) for arm in CURVE}
        free = [arm.label for arm, _ in found if _routes(arm) and not arm.upper_bound]
        gate_figure(result.arms, curve, free, result.base, result.folder / "gate_quality.png")
    write_atomic(result.folder / "study.json", dumps(_numbers(result, by_arm, failures), "the study"))


def _evaluation(run: RunFolder) -> dict[str, Any]:
    """The run's eval.json; `UserError` for one of another version."""
    result = run.read_json(EVALUATION)
    require_schema(result, run.path / EVALUATION)
    return result


def _routes(arm: Arm) -> bool:
    return intervention_class(arm.intervention).routed


def _text(result: StudyResult, notes: Sequence[str]) -> str:
    study = result.study
    seeds = f"{len(study.seeds)} seed" + ("s" if len(study.seeds) > 1 else "")
    tuned = tuning(preset("micro", "none"))
    where = f"{study.problems}, {seeds}, counts pooled over seeds, 95 % intervals over problems; {tuned}"
    table = final_table(result.base, result.arms, f"held-out hack and solve rates ({where})", gates=study.gates)
    modes = mode_table(result.base, result.arms, "train", "hack rate by loophole mode, train markers")
    parts = [table, *notes, "", modes]
    for title, lines in _comparisons(result).items():
        parts += ["", title, *lines]
    return "\n".join(parts)


def _comparisons(result: StudyResult) -> dict[str, list[str]]:
    """Lines by title; a study of other arms has none."""
    if not result.study.gates:
        return {}
    found = {
        "real directions and their placebos: hack of the quarantine-ablated model, train markers, seed by seed (no test: "
        "below means in every seed)": placebo_lines(result.arms, result.base, COMPARISONS),
        "a loophole left out of the pairs": unseen_lines(result.arms, result.base, UNSEEN_COMPARISONS),
    }
    return {title: lines for title, lines in found.items() if lines}


def _numbers(result: StudyResult, by_arm: ByArm, failures: Sequence[str]) -> dict[str, Any]:
    def figures(gates: Mapping[int, GateFigures]) -> dict[int, Any]:
        return {seed: dataclasses.asdict(figures) for seed, figures in gates.items()}

    own = {"gates": {arm.label: figures(arm.gates) for arm in result.arms if arm.gates}} if result.study.gates else {}
    return {
        "study": dataclasses.asdict(result.study),
        "runs": {arm.label: [str(run.path) for run in runs.values()] for arm, runs in by_arm},
        "failures": list(failures),
        "collapsed": {
            a.label: {f"seed{s}/{v}": why for (s, v), why in a.collapses(result.base).items()} for a in result.arms
        },
        "cells": {
            "base": [dataclasses.asdict(cell) for cell in tabulate(result.base)],
            **{
                a.label: {seed: [dataclasses.asdict(c) for c in tabulate(rows)] for seed, rows in a.rows.items()}
                for a in result.arms
            },
        },
        **own,
        "comparisons": [line for lines in _comparisons(result).values() for line in lines],
        "seconds": round(result.seconds, 1),
    }
