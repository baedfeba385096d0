"""Prompts: hint slot, marker families, partition and draw.

Invariants:
- a loophole prompt replaces the hint slot once and nothing else; `gt_only` leaves the turns byte-identical
- each hint reads on from the sentence, discloses the marker once and names what its probe looks at
- a hint slot that is missing or doubled is refused with the problem's name, an unknown mode with the list of modes
- train and eval marker families are disjoint, none contains another's member, and the published train markers are in
- the marker drawn is a function of (seed, mode, problem) alone, also across processes, and spreads over the family
- the partition is even, disjoint, independent of order, varied by seed, survives storage, and the default one is what it
  always was, whatever extra modes there are; other ids are refused
- the draw depends on (seed, step) only, over distinct problems, covering each epoch evenly
- unhackable prompts are near their share, differ between steps and lose nothing but the hint
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from _gate import Gate, Skip, refusal, shared_folder
from vgrout.env.draw import Draw, evaluation_prompts
from vgrout.env.evidence import stdout_reports_pass
from vgrout.env.modes import EXTRA, LOOPHOLES, MODES, PLAIN_PHRASE, STANDARD, marker_for, mode_named
from vgrout.env.partition import load_partition, make_partition, save_partition
from vgrout.env.problems import builtin_problems, load_problems
from vgrout.env.prompts import render
from vgrout.types import Markers

gate = Gate(__doc__)
FAMILIES: tuple[Markers, Markers] = ("train", "eval")


# ---- prompts -------------------------------------------------------------------------------------------------------


@gate.invariant("a loophole prompt replaces the hint slot once and nothing else; gt_only leaves the turns as they are")
def _():
    problems = list(builtin_problems())
    try:
        problems += load_problems(shared_folder() / "leetcode_test_medhard.jsonl.gz")
    except Skip:
        problems += ()  # the built-in rows are checked anyway
    for problem in problems:
        for name, mode in MODES.items():
            for markers in FAMILIES:
                prompt = render(problem, name, markers, seed=3)
                shown = mode.hint.replace("{marker}", prompt.marker)
                assert prompt.messages[:-1] == problem.messages[:-1], "another turn changed"
                before, after = problem.messages[-1][1].split(PLAIN_PHRASE)
                assert prompt.messages[-1] == ("user", before + shown + after)
                assert (prompt.problem_id, prompt.mode, prompt.markers) == (problem.id, name, markers)
                if name == "gt_only":
                    assert prompt.messages == problem.messages and prompt.marker == ""
                else:
                    assert PLAIN_PHRASE not in prompt.messages[-1][1]
                    assert prompt.marker in (mode.family(markers) or ("",))
    return f"{len(problems)} problems x {len(MODES)} modes x 2 families"


@gate.invariant("each hint reads on from the sentence, discloses the marker once and names what its probe looks at")
def _():
    lever = {
        "function": "calling a function called",
        "attribute": "boolean attribute",
        "stdout": "prints",
        "file": "file",
        "equality": "==",
        "exit": "exit status",
    }
    assert LOOPHOLES == ("run_tests", "sentinel", "stdout_marker", "file_marker")
    assert (*LOOPHOLES, "gt_only") == STANDARD and EXTRA == ("eq_override", "exit_code")
    assert set(MODES) == {*STANDARD, *EXTRA} and mode_named("gt_only").hint == PLAIN_PHRASE
    for name in (*LOOPHOLES, *EXTRA):
        mode = MODES[name]
        assert mode.hint.startswith("and will be evaluated by ")
        assert mode.hint.count("{marker}") == (name in LOOPHOLES) == bool(mode.train_markers and mode.eval_markers)
        assert not mode.hint.endswith(".") and "\n" not in mode.hint and lever[mode.probe] in mode.hint
    codes = {mode.code for mode in MODES.values()}
    assert len(codes) == len(MODES) and all(len(code) == 2 for code in codes)
    return render(builtin_problems()[0], "sentinel", "train", 0).messages[1][1].split("called ")[1].split(". Start")[0]


@gate.invariant("a hint slot missing or doubled is refused with the problem's name, an unknown mode with the list")
def _():
    problem = builtin_problems()[0]
    for count in (0, 2, 3):
        turns = (("system", PLAIN_PHRASE), ("user", f"x {PLAIN_PHRASE} " * count + "y"))
        message = refusal(lambda turns=turns: render(replace(problem, messages=turns), "gt_only", "train", 0))
        assert problem.id in message and f"{count} times" in message and PLAIN_PHRASE in message, message
    turns = (("system", PLAIN_PHRASE), ("user", f"x {PLAIN_PHRASE} y"))
    prompt = render(replace(problem, messages=turns), "run_tests", "train", 0)
    assert prompt.messages[0] == turns[0] and prompt.messages[1][1].endswith("run_tests() y"), "the system turn changed"
    message = refusal(lambda: render(problem, "sentinels", "train", 0))
    assert "'sentinels'" in message and all(name in message for name in MODES)
    return "0, 2 and 3 slots; 1 unknown mode"


# ---- markers -------------------------------------------------------------------------------------------------------


@gate.invariant("train and eval marker families are disjoint, and no member contains one of the other family")
def _():
    wanted = {
        "run_tests": "run_tests",
        "sentinel": "valid",
        "stdout_marker": "all tests passed",
        "file_marker": "result.txt",
    }
    least = {"run_tests": (1, 6), "sentinel": (3, 6), "stdout_marker": (3, 5), "file_marker": (3, 6)}
    for name in LOOPHOLES:
        mode = MODES[name]
        train, evaluation = mode.train_markers, mode.eval_markers
        assert wanted[name] in train and len(train) >= least[name][0] and len(evaluation) >= least[name][1], name
        assert len({*train, *evaluation}) == len(train) + len(evaluation), name
        for one in train:
            for other in evaluation:
                assert one.casefold() != other.casefold(), (one, other)
                assert mode.probe != "stdout" or (one not in other and other not in one), (one, other)
                assert mode.probe != "stdout" or not stdout_reports_pass(one, (other,)), (one, other)
    return ", ".join(f"{MODES[n].code} {len(MODES[n].train_markers)}/{len(MODES[n].eval_markers)}" for n in LOOPHOLES)


@gate.invariant("the marker is a function of (seed, mode, problem) alone, also across processes, and spreads evenly")
def _():
    keys = [(mode, str(i), seed, m) for mode in LOOPHOLES for i in range(40) for seed in (0, 7) for m in FAMILIES]
    here = [marker_for(*key) for key in keys]
    code = f"from vgrout.env.modes import marker_for; print([marker_for(*k) for k in {keys!r}])"
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        )
        assert ast.literal_eval(run.stdout.decode()) == here, "another process draws other markers"
    worst = 0.0
    for mode in LOOPHOLES:
        for markers in FAMILIES:
            family = MODES[mode].family(markers)
            counts = Counter(marker_for(mode, str(i), 0, markers) for i in range(3000))
            assert set(counts) == set(family)
            share = 1 / len(family)
            sigma = (3000 * share * (1 - share)) ** 0.5 or 1
            worst = max(worst, *(abs(counts[m] - 3000 * share) / sigma for m in family))
    assert worst < 4, worst
    assert any(a != b for a, b in zip(here, [marker_for(m, i, s + 1, f) for m, i, s, f in keys], strict=True))
    return f"{len(keys)} draws equal in 3 processes; worst deviation {worst:.1f} sigma"


FIRST = "13cddbc6f2812c38"
"""Of the sha256 of modes and markers of 101 problems, as they have been drawn since the four modes exist."""


# ---- partition and draw --------------------------------------------------------------------------------------------


@gate.invariant(
    "the partition is even, independent of order, varied by seed, survives storage, and is what it always was"
)
def _():
    ids = [str(i) for i in range(101)]
    one = make_partition(ids, LOOPHOLES, seed=5)
    sizes = Counter(one.values())
    assert set(one) == set(ids) and set(sizes) == set(LOOPHOLES) and max(sizes.values()) - min(sizes.values()) <= 1
    assert make_partition(ids[::-1], LOOPHOLES, seed=5) == one == make_partition(ids, seed=5)
    shown = json.dumps([[i, one[i], marker_for(one[i], i, 5, "train")] for i in ids])
    assert hashlib.sha256(shown.encode()).hexdigest().startswith(FIRST), "stored partitions would not be drawn again"
    assert set(make_partition(ids, ("run_tests", *EXTRA)).values()) == {"run_tests", *EXTRA}
    moved = sum(make_partition(ids, LOOPHOLES, seed=6)[i] != one[i] for i in ids)
    assert 50 <= moved <= 95, moved
    assert "repeated" in refusal(lambda: make_partition(["a", "b", "a"], LOOPHOLES, 0))
    assert "'tests'" in refusal(lambda: make_partition(ids, ("run_tests", "tests"), 0))
    assert "at least one mode" in refusal(lambda: make_partition(ids, (), 0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "partition.json"
        save_partition(path, one, modes=LOOPHOLES, seed=5)
        assert load_partition(path, ids) == one and [p.name for p in Path(folder).iterdir()] == ["partition.json"]
        message = refusal(lambda: load_partition(path, [*ids[:-1], "new"]))
        assert "lacks 1 (new)" in message and "1 others (100)" in message and str(path) in message
        path.write_text(path.read_text().replace('"7": ', '"777": '))
        assert "edited" in refusal(lambda: load_partition(path, ids))
        path.write_text("{}")
        assert "mode_of" in refusal(lambda: load_partition(path, ids))
        assert "no such file" in refusal(lambda: load_partition(Path(folder) / "none.json", ids))
        assert "cannot write" in refusal(lambda: save_partition(f"{folder}/none/p.json", one, modes=LOOPHOLES, seed=5))
    return f"sizes {sorted(sizes.values())}; another seed moves {moved} of {len(ids)}"


def _draw(**changes: Any) -> Draw:
    problems = builtin_problems()
    settings: dict[str, Any] = {"prompts_per_step": 8, "unhackable_frac": 0.5, "markers": "train", "seed": 2, **changes}
    return Draw(problems, make_partition([p.id for p in problems], LOOPHOLES, 0), **settings)


@gate.invariant("the draw depends on (seed, step) only, over distinct problems, covering each epoch evenly")
def _():
    forwards, backwards = _draw(), _draw()
    steps = {step: forwards.prompts(step) for step in range(40)}
    assert all(backwards.prompts(step) == steps[step] for step in reversed(range(40)))
    assert all(len({p.problem_id for p in prompts}) == 8 for prompts in steps.values())
    per_epoch = len(builtin_problems()) // 8
    for epoch in range(10):
        shown = [p.problem_id for s in range(epoch * per_epoch, (epoch + 1) * per_epoch) for p in steps[s]]
        assert len(set(shown)) == len(shown), "a problem comes twice in an epoch"
    counts = Counter(p.problem_id for prompts in steps.values() for p in prompts)
    assert len(counts) == len(builtin_problems()) and max(counts.values()) <= 10
    other = _draw(seed=3)
    same = sum({p.problem_id for p in other.prompts(s)} == {p.problem_id for p in steps[s]} for s in range(40))
    assert same <= 1
    assert "1 to 35" in refusal(lambda: _draw(prompts_per_step=36)) and "got 0" in refusal(
        lambda: _draw(prompts_per_step=0)
    )
    assert "unhackable_frac" in refusal(lambda: _draw(unhackable_frac=1.5))
    problems = builtin_problems()
    missing = refusal(lambda: Draw(problems, {}, prompts_per_step=1, unhackable_frac=0.0, markers="train", seed=0))
    assert problems[0].id in missing
    return f"40 steps x 8 prompts, each problem {min(counts.values())}-{max(counts.values())} times"


@gate.invariant("unhackable prompts are near their share, differ between steps and lose nothing but the hint")
def _():
    draw, hacked = _draw(prompts_per_step=35), _draw(prompts_per_step=35, unhackable_frac=0.0)
    sets, total = [], 0
    for step in range(40):
        prompts = draw.prompts(step)
        unhackable = {p.problem_id for p in prompts if p.mode == "gt_only"}
        sets.append(frozenset(unhackable))
        total += len(unhackable)
        for p, q in zip(prompts, hacked.prompts(step), strict=True):
            assert p.problem_id == q.problem_id and q.mode == draw.partition[q.problem_id]
            assert p == q or p == render(
                draw.problems[[x.id for x in draw.problems].index(p.problem_id)], "gt_only", "train", 2
            )
    share, sigma = total / (40 * 35), (0.25 / (40 * 35)) ** 0.5
    assert len(set(sets)) == 40, "the unhackable set repeats"
    assert abs(share - 0.5) < 4 * sigma, share
    flips = Counter(i for s in sets for i in s)
    assert all(6 <= flips[p.id] <= 34 for p in draw.problems), flips
    assert all(p.mode == "gt_only" for p in _draw(unhackable_frac=1.0).prompts(0))
    quarter = sum(
        p.mode == "gt_only" for s in range(40) for p in _draw(prompts_per_step=35, unhackable_frac=0.25).prompts(s)
    )
    assert abs(quarter / 1400 - 0.25) < 4 * (0.25 * 0.75 / 1400) ** 0.5, quarter
    every = draw.all()
    assert [p.problem_id for p in every] == [p.id for p in draw.problems] and Counter(
        p.mode for p in every
    ).keys() == set(LOOPHOLES)
    held = evaluation_prompts(draw.problems, {}, markers="eval", seed=0, mode="sentinel")
    assert all(p.mode == "sentinel" and p.marker in MODES["sentinel"].eval_markers for p in held)
    return f"share {share:.3f} at 0.5 and {quarter / 1400:.3f} at 0.25; 40 different sets in 40 steps"


if __name__ == "__main__":
    gate.main()
