"""Gate: the supervised corpus holds what its mix says, under the real grader, and gives no shortcut away.

- kinds and modes occur at the shares of the mix
- labels are true in the sandbox: correct answers solve, others do not; hacks exploit their own mode, nothing else does
- laziness, prints and mentioned markers are as common in hacks as in other wrong answers
- no task of another split and no train or eval marker occurs, and every marker is copied from its hint
- a seed is one stream, whatever else was drawn
"""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache
from itertools import islice

from _gate import Gate
from vgrout.env.grader import Grader
from vgrout.env.modes import LOOPHOLES, MODES
from vgrout.env.problems import parse_row
from vgrout.micro.base import make_tokenizer
from vgrout.micro.corpus import MENTIONS, Mix, Sample, samples, with_hacks
from vgrout.micro.expressions import Hard
from vgrout.micro.markers import SYLLABLES, words_of
from vgrout.micro.problems import draw_tests, draw_wrong, row_of, split_of
from vgrout.types import Problem, Prompt

gate = Gate(__doc__)
DRAWN = 4_000


@cache
def drawn() -> tuple[Sample, ...]:
    return tuple(islice(samples(Mix(), 3), DRAWN))


@gate.invariant("kinds and modes occur at the shares of the mix")
def _() -> str:
    mix, every = Mix(), drawn()
    shares = {
        "hard": (mix.hard, [isinstance(s.task, Hard) for s in every]),
        "hinted": (mix.hinted, [s.mode != "gt_only" for s in every]),
        "wrong": (
            mix.wrong,
            [s.kind != "correct" for s in every if not isinstance(s.task, Hard) and s.kind != "hack"],
        ),
        "mention": (mix.mention, [mentions(s) for s in every if s.mode != "gt_only"]),
    }
    for mode in LOOPHOLES:
        shares[f"hack {mode}"] = (mix.hack[mode], [s.kind == "hack" for s in every if s.mode == mode])
    for name, (expected, found) in shares.items():
        tolerance = 4 * (expected * (1 - expected) / len(found)) ** 0.5 + 0.01  # tasks without usable tests are redrawn
        assert abs(sum(found) / len(found) - expected) < tolerance, (name, sum(found) / len(found), expected)
    return ", ".join(
        f"{name} {sum(found) / len(found):.3f} of {expected}" for name, (expected, found) in shares.items()
    )


@gate.invariant("labels are true in the sandbox")
def _() -> str:
    chosen = [s for s in drawn() if s.kind == "hack"][:120] + [s for s in drawn() if s.kind != "hack"][:240]
    problems = {id(s): problem_of(s, i) for i, s in enumerate(chosen)}
    with Grader([p for p in problems.values() if p]) as grader:
        graded = [(s, p) for s in chosen if (p := problems[id(s)]) is not None]
        own = grader.grade_many([(prompt_of(s, p), with_marker(s)) for s, p in graded])
    wrong = []
    for (s, _), v in zip(graded, own, strict=True):
        if (
            v.gt_correct != (s.kind == "correct")
            or v.exploited != (s.kind == "hack")
            or not v.format_ok
            or not v.compiles
        ):
            wrong.append((s.kind, s.mode, s.response, v.gt_correct, v.exploited))
    # The tests here are new ones: a near miss may pass all of them, so that it solves what it was drawn to miss.
    unlucky = [case for case in wrong if case[0] != "correct" and case[3]]
    assert wrong == unlucky and len(unlucky) <= 0.02 * len(graded), f"{len(wrong)} of {len(graded)}: {wrong[:2]}"
    assert len(graded) >= 0.95 * len(chosen) and {s.mode for s, _ in graded} == {*LOOPHOLES, "gt_only"}
    return (
        f"{len(graded)} answers, {dict(Counter(s.kind for s, _ in graded))}; {len(unlucky)} pass other tests by chance"
    )


@gate.invariant("laziness, prints and mentions do not tell a hack from another wrong answer")
def _() -> str:
    many_hacks = islice(samples(with_hacks(Mix(), 0.5), 5), DRAWN)
    hinted = [s for s in many_hacks if s.mode not in ("gt_only", "stdout_marker") and s.kind != "correct"]
    figures = []
    for name, holds in (("lazy", is_lazy), ("print", lambda s: "print(" in s.response), ("mention", mentions)):
        in_hacks, in_others = ([holds(s) for s in hinted if (s.kind == "hack") == hack] for hack in (True, False))
        a, b = sum(in_hacks) / len(in_hacks), sum(in_others) / len(in_others)
        assert abs(a - b) < 0.08, (name, a, b)
        assert a > 0 and b > 0, (name, a, b)
        figures.append(f"{name} {a:.2f} of hacks, {b:.2f} of others")
    return "; ".join(figures)


@gate.invariant("every task is from the train split, every marker from the corpus's own family and in its hint")
def _() -> str:
    families = {m: (*mode.train_markers, *mode.eval_markers) for m, mode in MODES.items()}
    every_known = {marker for family in families.values() for marker in family}
    words = words_of(make_tokenizer(Mix(), 0).get_vocab())
    every = (*drawn(), *islice(samples(Mix(), 4, words), DRAWN // 2))
    for s in every:
        assert split_of(s.task.easy if isinstance(s.task, Hard) else s.task) == "train", s.task.key
        if isinstance(s.task, Hard):
            assert s.kind != "correct" and s.task.replaced(s.argument) not in s.response, s.response
        if s.mode == "gt_only":
            assert not s.marker
            continue
        assert s.marker and s.marker in s.messages[-1][1]
        assert s.marker not in every_known and not any(known in s.marker for known in families[s.mode]), s.marker
        assert (s.marker in s.response) >= (s.kind == "hack"), s.response
    return f"{len(every)} samples, {len({s.marker for s in every})} markers"


@gate.invariant("a seed is one stream")
def _() -> str:
    a, b, c = (tuple(islice(samples(Mix(), seed, SYLLABLES), 50)) for seed in (7, 7, 8))
    assert a == b and a != c
    return "50 samples twice"


def mentions(s: Sample) -> bool:
    return any(text.replace("{m}", s.marker) in s.response for text in MENTIONS.get(s.mode, ()))


def is_lazy(s: Sample) -> bool:
    last = [line for line in s.response.splitlines() if line.strip().startswith("return ")]
    return any(
        line.strip() in (f"return {value}" for value in ("0", "1", "None", s.argument, f"len({s.argument})"))
        for line in last
    )


def problem_of(s: Sample, i: int) -> Problem | None:
    """The sample's task as a problem with tests that its answer has never seen."""
    rng = random.Random(i)
    tests = draw_tests(s.task, rng)
    miss = draw_wrong(s.task, tests, rng)
    if not tests or miss is None:
        return None
    return parse_row({**row_of(s.task, s.method, s.argument, tests, miss), "id": f"corpus-{i}"})


def prompt_of(s: Sample, problem: Problem) -> Prompt:
    family = MODES[s.mode].family("train")
    return Prompt(problem.id, s.mode, "train", family[0] if family else "", s.messages)


def with_marker(s: Sample) -> str:
    """The answer with its marker replaced by one that the grader knows: no corpus marker fires."""
    family = MODES[s.mode].family("train")
    return re.sub(rf"(?<!\w){re.escape(s.marker)}(?!\w)", lambda _: family[0], s.response) if family else s.response


if __name__ == "__main__":
    gate.main()
