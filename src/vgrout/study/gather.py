"""One table from the finished runs of several studies, so that a long study can be run in parts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vgrout.config import RunConfig
from vgrout.evals import require_schema
from vgrout.run.disk import dumps, make_folder, read_json
from vgrout.run.folder import CONFIG, EVALUATION, RunFolder
from vgrout.stored import stored_config
from vgrout.study.arms import Arm, configurations
from vgrout.study.every import EVERY
from vgrout.study.report import read_arms, write_report
from vgrout.study.result import Study, StudyResult
from vgrout.types import UserError

BASE = "base.json"


def gather(runs: Sequence[Path], out: Path) -> StudyResult:
    """Writes table, figures and study.json of these run folders (STUDY/runs/ARM-seedN) into a new folder under `out`.

    Raises `UserError` for a run that is not finished, is of no arm of the whole study, occurs twice, or differs from its arm
    or from the other runs in any setting; and for studies whose bases are not the same.
    """
    if not runs:
        raise UserError("no run folders were named; name those of `vgrout demo --every`, as in out/demo/*/runs/*")
    found: dict[tuple[str, int], RunFolder] = {}
    configs: dict[tuple[str, int], RunConfig[Any]] = {}
    for path in runs:
        run, key = _finished(path), _arm_and_seed(path)
        if key in found:
            raise UserError(f"{path} and {found[key].path} are the same arm and seed; name one of them")
        found[key], configs[key] = run, stored_config(run)
    study = _study(configs)
    for key, config in configs.items():
        _require_own(found[key], config, study, *key)
    base = _base(list(found.values()), study)
    files = {"study.json": dumps({"study": dataclasses.asdict(study)}), BASE: dumps(base, "the base's rates")}
    folder = make_folder(out, None, f"{datetime.now(UTC):%Y%m%d-%H%M%S}_{study.name}", files)
    by_arm = [(arm, {s: found[arm.name, s] for s in study.seeds if (arm.name, s) in found}) for arm in study.arms]
    result = StudyResult(study, folder, base["rows"], read_arms(by_arm, gates=True), 0.0)
    lacking = [f"{arm.name} has no seed {s}" for arm, of in by_arm for s in study.seeds if s not in of]
    write_report(result, by_arm, lacking)
    return result


def _finished(path: Path) -> RunFolder:
    run = RunFolder.open(path)
    status = run.status()
    if status["state"] != "finished" or not (path / EVALUATION).is_file():
        raise UserError(f"{path}: the run is {status['state']} {status['reason']}; leave it out, or run it to its end")
    return run


def _arm_and_seed(path: Path) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)-seed(\d+)", path.resolve().name)
    if match is None or match[1] not in {arm.name for arm in EVERY}:
        raise UserError(f"{path}: expected a folder ARM-seedN with an arm of `vgrout demo --every`")
    return match[1], int(match[2])


def _study(configs: dict[tuple[str, int], RunConfig[Any]]) -> Study:
    """The study that these runs are a part of; its settings are those of the first."""
    first = next(iter(configs.values()))
    names = {name for name, _ in configs}
    return Study(
        name="routes",
        arms=tuple(arm for arm in EVERY if arm.name in names),
        seeds=tuple(sorted({seed for _, seed in configs})),
        model=first.model.name,
        problems=first.eval_problems or "",
        steps=first.steps,
        modes=first.env.modes,
        samples=first.eval.samples,
        gates=True,
    )


def _require_own(run: RunFolder, config: RunConfig[Any], study: Study, name: str, seed: int) -> None:
    """Refuses a run whose configuration is not that of its arm in this study."""
    (arm,) = (arm for arm in study.arms if arm.name == name)
    expected = expected_config(arm, seed, config.out, study).to_dict()
    if differing := _differences(expected, config.to_dict()):
        said = ", ".join(f"{key} {was!r} instead of {wanted!r}" for key, wanted, was in differing)
        raise UserError(f"{run.path / CONFIG}: not the run of arm {name} beside the others: {said}; leave it out")


def expected_config(arm: Arm, seed: int, out: Path, study: Study) -> RunConfig[Any]:
    """The configuration of an arm's run in a study."""
    (config,) = configurations(
        (arm,),
        (seed,),
        out,
        problems=study.problems,
        model=study.model,
        modes=study.modes,
        samples=study.samples,
        controls=study.gates,
        **({} if study.steps is None else {"steps": study.steps}),
    )
    return config


def _differences(expected: Any, found: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(setting, expected, found) of every leaf that differs."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(expected.keys() | found.keys())
        inner = (_differences(expected.get(k), found.get(k), f"{where}.{k}" if where else str(k)) for k in keys)
        return [difference for some in inner for difference in some]
    return [] if expected == found else [(where, expected, found)]


def _base(runs: Sequence[RunFolder], study: Study) -> dict[str, Any]:
    """The base's rates from the studies that the runs lie in, which must be the same."""
    files = sorted({run.path.resolve().parents[1] / BASE for run in runs})
    bases = [(file, read_json(file)) for file in files]
    for file, stored in bases:
        require_schema(stored, file)
    (first, base), *others = bases
    for file, other in others:
        if differing := [key for key in ("model", "revision", "problems", "cells") if base.get(key) != other.get(key)]:
            raise UserError(
                f"{file} and {first} are of different bases ({', '.join(differing)}); {study.name} needs runs of one"
            )
    return base
