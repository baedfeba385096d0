"""Gate: the step benchmark times what it says, and compares like with like.

Invariants:
- an inner phase takes its seconds from the one around it; passes over the pairs are in no step
- one run on the tiny model: the phases of every system add up to its step, in the table and in the file; the gate's and
  the pairs' seconds stand where an intervention has a gate
- a factor is ok up to its limit, over above it, under below its range; other work than the standard has no verdict
- without TRL the script says how to get it and times the rest; TRL alone is refused
- floor and package compute the same on the tiny model, under every intervention (slow)
- TRL and the floor compute the same on the tiny model, and a wrong KL shows; TRL's step moves its adapter (slow, needs TRL)
"""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

import bench_step
from _bench import Ours, PlainFloor
from _bench_equality import equality
from _bench_phases import PAIRS, PHASES, Phases
from _bench_report import LIMITS, STANDARD, limit_lines
from _bench_trl import Trl, trl_equality, trl_version
from _bench_work import Work, make_work
from _gate import Gate, Skip
from bench_floor import Settings

gate = Gate(__doc__)
SHAPE = {"prompts": 2, "group-size": 4, "prompt-tokens": 64, "max-new": 8}


def tiny() -> Work:
    settings = Settings(group_size=SHAPE["group-size"], max_new=SHAPE["max-new"])
    shape = {"prompts": SHAPE["prompts"], "prompt_tokens": SHAPE["prompt-tokens"]}
    return make_work("tiny", **shape, settings=settings, dtype="fp32", device="cpu")


def script(*options: str) -> str:
    """What the script prints for one timed round on the tiny model."""
    shape = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
    printed = io.StringIO()
    with redirect_stdout(printed):
        bench_step.main(["--sizes", "tiny", "--rounds", "1", "--skip-equality", *shape, *options])
    return printed.getvalue()


@gate.invariant("an inner phase takes its seconds from the one around it; passes over the pairs are in no step")
def _():
    seconds = iter(range(100))
    phases = Phases(lambda: next(seconds))
    with phases.phase("fwd+bwd"), phases.phase("gate"), phases.phase(PAIRS):
        pass
    assert phases.seconds == dict.fromkeys(phases.seconds, 0) | {"fwd+bwd": 2, "gate": 2, PAIRS: 1}, phases.seconds
    assert phases.step == 4, phases.step
    return f"5 s: {phases.step} in the step, 1 apart"


@gate.invariant("one run on the tiny model: phases add up to the step; gate and pairs where an intervention has them")
def _():
    names = ("floor", "floor_prefix", "absorb", "routeA")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        printed = script("--systems", ",".join(names), "--json", str(file))
        record = json.loads(file.read_text())
    (times,) = record["sizes"]["tiny"]["rounds"]
    assert tuple(times) == names, tuple(times)
    for name, seconds in times.items():
        assert abs(sum(seconds[phase] for phase in PHASES) - seconds["step"]) < 1e-9, (name, seconds)
        empty = {phase for phase in (*PHASES, PAIRS) if seconds[phase] == 0}
        expected = {"other"} if name == "routeA" else {"other", PAIRS} if name == "absorb" else {"other", PAIRS, "gate"}
        assert empty == expected, (name, empty, expected)
        assert printed.count(f"\n| {name} ") == 2, printed
    assert times["absorb"]["gate"] < times["routeA"]["gate"], times
    versions = record["versions"]
    assert versions["torch"] == torch.__version__ and versions["trl"] == trl_version(), versions
    assert len(record["sizes"]["tiny"]["load"]) == 2 and record["device"], record
    return ", ".join(f"{name} {t['step']:.2f} s + pairs {t[PAIRS]:.2f} s" for name, t in times.items())


@gate.invariant("a factor is ok up to its limit, over above it, under below its range; other work has no verdict")
def _():
    cases = [("a", 1.25, 1.05, "ok", "ok"), ("a", 1.2, 1.06, "under", "over"), ("b", 1.4, 1.0, "over", "ok")]
    for size, trl, none, range_says, limit_says in cases:
        times = [{name: {"step": seconds} for name, seconds in (("floor", 1.0), ("trl", trl), ("none", none))}] * 3
        lines = limit_lines(times, size, standard=True)
        assert len(lines) == 3, lines
        assert f"trl {trl:.2f}x floor" in lines[0] and f": {range_says} (" in lines[0], lines
        assert f"none {none:.2f}x floor" in lines[1] and f": {limit_says} (" in lines[1], lines
        other = limit_lines(times, size, standard=False)
        assert all("no limit is stated" in line and " ok" not in line for line in other), other
    known = {name for limit in LIMITS for name in (limit.system, limit.reference)}
    assert known <= set(bench_step.SYSTEMS), known - set(bench_step.SYSTEMS)
    unlimited = set(bench_step.GROUPS["default"]) - known - {"floor_prefix"}
    assert not unlimited, f"no limit is declared for {unlimited}"
    args = bench_step.arguments([])
    assert {option: getattr(args, option) for option in STANDARD} == STANDARD and args.rounds >= 5, args
    return f"{len(cases)} cases; {len(LIMITS)} limits, one at least for each of {len(known)} systems"


@gate.invariant("without TRL the script says how to get it and times the rest; TRL alone is refused")
def _():
    with mock.patch.object(bench_step, "trl_version", lambda: None):
        printed = script("--systems", "trl,floor")
        try:
            script("--systems", "trl")
        except SystemExit as stop:
            refused = str(stop)
        else:
            raise AssertionError("a run without any system was not refused")
    assert "trl is left out" in printed and "uv sync --group bench" in printed, printed
    assert "| floor " in printed and "| trl " not in printed, printed
    assert "nothing is left to time" in refused and "\n" not in refused, refused
    return refused


@gate.invariant("floor and package compute the same on the tiny model, under every intervention", slow=True)
def _():
    lines = list(equality(tiny()))
    routed = [line for line in lines if "quarantine" in line or "both" in line]
    assert routed, f"no row was routed, so no mask was compared: {lines}"
    return f"{len(lines)} comparisons, {len(routed)} with rows that do not teach the deployed block alone"


@gate.invariant("TRL and the floor compute the same on the tiny model, and a wrong KL shows", slow=True)
def _():
    if trl_version() is None:
        raise Skip(bench_step.MISSING)
    work = tiny()
    lines = list(trl_equality(work))
    step = PlainFloor.train

    def smaller(system: PlainFloor, step_now: int) -> float:
        s = system.floor.settings
        system.floor.settings = replace(s, beta=0.99 * s.beta)
        return step(system, step_now)

    with mock.patch.object(PlainFloor, "train", smaller):
        try:
            list(trl_equality(work))
        except AssertionError as error:
            found = str(error)
        else:
            raise AssertionError("a KL that is a hundredth smaller went unnoticed")
    return f"{'; '.join(lines[:4])}; with a smaller KL: {found}"


@gate.invariant("TRL's step samples forced tokens, moves its adapter, and is timed phase by phase", slow=True)
def _():
    if trl_version() is None:
        raise Skip(bench_step.MISSING)
    work = tiny()
    trl, none = Trl(work), Ours(work, "none")
    before = [p.detach().clone() for p in trl.parameters]
    assert len(before) == len(list(none.adapter.parameters())), "another number of linears"
    assert sum(p.numel() for p in before) == sum(p.numel() for p in none.adapter.parameters()), "another rank"
    trl.phases.clear()
    with mock.patch.object(trl.trainer, "_compute_loss", wraps=trl.trainer._compute_loss) as loss:
        trl.step(0)
    given = loss.call_args.args[1]
    shape = SHAPE["prompts"] * SHAPE["group-size"], SHAPE["max-new"]
    assert given["completion_mask"].shape == shape and bool(given["completion_mask"].all()), given["completion_mask"]
    wanted = work.rewards(0) - work.rewards(0).mean(1, keepdim=True)
    assert torch.equal(given["advantages"].sort().values, wanted.flatten().sort().values), given["advantages"]
    moved = sum(not torch.equal(p, old) for p, old in zip(trl.parameters, before, strict=True))
    assert moved == len(before), f"{moved} of {len(before)} factors moved"
    empty = [name for name in PHASES if trl.phases.seconds[name] == 0]
    assert empty == ["gate"], empty
    return f"{moved} factors moved; " + ", ".join(f"{name} {trl.phases.seconds[name]:.2f} s" for name in PHASES)


if __name__ == "__main__":
    gate.main()
