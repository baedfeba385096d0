"""Does erasing the real direction do more than erasing a placebo? `erase` on both adapters in the micro world.

    python scripts/study_erase.py                         # 54 runs: about an hour on 4 cores
    python scripts/study_erase.py --adapters lora2r --seeds 0

For each adapter: `none`, and `erase` with the direction of the micro pairs, a Haar draw, shuffled pairs (seeds of their
own per run) and a content placebo, each frozen and renewed every 5 steps. Hack and solve are of held-out problems
under train markers; counts are pooled over seeds, with 95 % intervals and the seeds' own rates beside them. `cin` is the
mean over the last 15 steps of the gradient's part along the direction, with its null; `cout_u` that of the update.
Nothing is tuned on the test split: delta_s has the learning rate at which `none` came to hack on validation problems.

The last lines compare the real direction with each placebo, seed by seed; where a model of either arm has collapsed
there is no comparison, because a model that has stopped solving hacks little for that reason alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from vgrout.cli import USAGE_ERROR
from vgrout.cores import usable_cores
from vgrout.evals import ALL, FREE, tabulate
from vgrout.parallel import require_jobs
from vgrout.run.console import say, setup_console
from vgrout.run.disk import require_writable, write_atomic
from vgrout.run.folder import RunFolder
from vgrout.run.intervals import proportion
from vgrout.study.arms import Arm
from vgrout.study.run import Study, StudyResult, run_study
from vgrout.study.summary import Rows, find
from vgrout.types import UserError

SOURCES = {
    "real": "real",
    "haar": "haar:{seed}",
    "shuffled": "shuffled:{seed}",
    "content": "content:micro_placebo_style",
}
REFRESH = {"frozen": 0, "refreshed": 5}
LAST = 15


def arms_of(adapter: str) -> tuple[Arm, ...]:
    """`none` and the eight forms of `erase`, all on one adapter."""
    erased = [
        Arm(
            f"{adapter}-erase-{source}-{name}",
            "erase",
            adapter=adapter,
            options={"direction": direction, "extraction.refresh_every": every},
        )
        for source, direction in SOURCES.items()
        for name, every in REFRESH.items()
    ]
    none = Arm(f"{adapter}-none", "none", adapter=adapter, options={"extraction.refresh_every": 0})
    return (none, *erased)


def main() -> int:
    args = parse_arguments()
    setup_console()
    require_jobs(args.jobs)
    require_writable(args.out, None)
    for adapter in args.adapters:
        study = Study(f"erase-{adapter}", arms_of(adapter), tuple(args.seeds), problems=args.problems, steps=args.steps)
        result = run_study(study, args.out, jobs=args.jobs)
        text = "\n".join([table(result, study), *verdicts(result)])
        write_atomic(result.folder / "erase.txt", text + "\n")
        say(f"\n{text}\n\n{result.folder}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", nargs="+", choices=("lora2r", "delta_s"), default=["lora2r", "delta_s"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None, help="of a run; none: the preset's")
    parser.add_argument("--out", type=Path, default=Path("out/erase"))
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="runs side by side")
    problems = ("micro:test", "micro:validation")
    parser.add_argument("--problems", choices=problems, default=problems[0], help="tuning uses micro:validation")
    return parser.parse_args()


HEAD = (
    "arm",
    "hack, train markers",
    "hack, eval markers",
    "solve, no hint",
    "hack by seed",
    "cin",
    "null",
    "cout_u",
    "",
)


def table(result: StudyResult, study: Study) -> str:
    """One line for the base and one for each arm; what ships is what is shown."""
    lines = [HEAD, ("base", *rates(result.base, "base"), "", "", "", "", "")]
    for arm in result.arms:
        pooled = [row for rows in arm.rows.values() for row in rows if row["view"] == "deploy"]
        mark = (
            "COLLAPSED in seed " + ", ".join(sorted({str(s) for s, _ in bad}))
            if (bad := arm.collapses(result.base))
            else ""
        )
        seeds = " ".join(f"{h:.2f}" for h in hacks(arm.rows).values())
        folders = [RunFolder.open(result.folder / "runs" / n) for n in named(study, arm.label).run_names(arm.rows)]
        lines.append((arm.label, *rates(pooled, "deploy"), seeds, *measured(folders), mark))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    body = ["  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    where = f"{study.problems}, seeds {' '.join(map(str, study.seeds))}"
    return "\n".join([f"{study.name}: held-out rates of what ships ({where}; oracle-tuned on micro:validation)", *body])


def named(study: Study, label: str) -> Arm:
    return next(arm for arm in study.arms if arm.label == label)


def rates(rows: Rows, view: str) -> tuple[str, str, str]:
    """Hack under train and eval markers, solve without a hint."""
    cells = tabulate(rows)
    train, unseen, free = (find(cells, view, m, k) for m, k in (("train", ALL), ("eval", ALL), ("", FREE)))
    assert train is not None and unseen is not None and free is not None
    return proportion(train.hacks, train.n), proportion(unseen.hacks, unseen.n), proportion(free.solves, free.n)


def hacks(by_seed: dict[int, Rows]) -> dict[int, float]:
    """Hack rate under train markers of what ships, by seed."""
    found = {}
    for seed, rows in by_seed.items():
        cell = find(tabulate(rows), "deploy", "train", ALL)
        assert cell is not None and cell.n
        found[seed] = cell.hacks / cell.n
    return found


def measured(folders: Sequence[RunFolder]) -> tuple[str, str, str]:
    """Means over the runs and their last steps; a dash where a column is undefined."""
    texts = []
    for column in ("cin", "cin_null", "cout_update"):
        values = [row.values[column] for run in folders for row in run.metrics()[-LAST:]]
        defined = [float(v) for v in values if v is not None]
        texts.append(f"{statistics.fmean(defined):.3f}" if defined else "-")
    return texts[0], texts[1], texts[2]


def verdicts(result: StudyResult) -> list[str]:
    """Seed-paired differences of hack rates: of the real direction to each placebo and to `none`, with their range.

    Three seeds carry no test; "below" means that every seed's difference is negative, and no more.
    """
    by_name = {arm.label: hacks(arm.rows) for arm in result.arms}
    lines = []
    collapsed = {arm.label: sorted({seed for seed, _ in arm.collapses(result.base)}) for arm in result.arms}
    for refresh in REFRESH:
        (real,) = (name for name in by_name if name.endswith(f"erase-real-{refresh}"))
        for name, rates_of in by_name.items():
            if name == real or not (name.endswith(refresh) or name.endswith("-none")):
                continue
            if bad := [
                f"{n} collapsed in seed {', '.join(map(str, collapsed[n]))}" for n in (real, name) if collapsed[n]
            ]:
                lines.append(f"{real} and {name}: no comparison, {'; '.join(bad)}")
                continue
            shared = sorted(by_name[real].keys() & rates_of.keys())
            differences = [by_name[real][s] - rates_of[s] for s in shared]
            side = "below" if max(differences) < 0 else "above" if min(differences) > 0 else "not apart from"
            lines.append(
                f"{real} is {side} {name}: hack differs by {statistics.fmean(differences):+.3f} "
                f"(by seed {' '.join(f'{d:+.3f}' for d in differences)})"
            )
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
