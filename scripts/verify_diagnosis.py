"""Gate: a step that learns nothing from its rewards says why, in one line.

Invariants:
- each kind of idle group is told from the others; a group that teaches makes the step a learning one
- the line counts prompts, names at most six of them, puts the most frequent kind first, and its remedies exist
- rows that the grader failed on are said even where the others taught something
- in steps of the training loop there is a diagnosis exactly where no row taught a block
"""

from __future__ import annotations

import re
from typing import Any

from loguru import logger

from _gate import Gate
from _metric_steps import FLAT, ONE_HACK, Case, taken
from vgrout import diagnosis as module
from vgrout.diagnosis import SHOWN, Kind, diagnosis, kind_of, warn_if_idle
from vgrout.presets import preset

gate = Gate(__doc__)
logger.remove()

G = 4
WRONG = {"reward": 0.5}
HACK = {"reward": 3.5, "exploited": True}
SOLVE = {"reward": 3.5, "gt_correct": True}
NO_CODE = {"reward": 0.0, "format_ok": False, "compiles": False}
NO_COMPILE = {"reward": 0.0, "compiles": False}
MASKED = {"infra": True, "reward": 0.0, "format_ok": False, "compiles": False}
CUT = NO_CODE | {"finished": False}
ROUTED = HACK | {"advantage": 1.0, "d_grad": 0.0}
TEACHES = HACK | {"advantage": 1.0}

CASES: dict[str, tuple[tuple[dict[str, Any], ...], Kind]] = {
    "wrong": ((WRONG,) * G, module.WRONG),
    "wrong, one masked": ((WRONG,) * 3 + (MASKED,), module.WRONG),
    "correct": ((SOLVE,) * G, module.CORRECT),
    "correct, one masked": ((SOLVE,) * 3 + (MASKED,), module.CORRECT),
    "hacked": ((HACK,) * G, module.HACKED),
    "both paid": ((HACK, SOLVE) * 2, module.PAID),
    "no code": ((NO_CODE,) * G, module.NO_CODE),
    "half of it cut": ((CUT, NO_CODE) * 2, module.NO_CODE),
    "most of it cut": ((CUT,) * 3 + (NO_CODE,), module.NO_CODE_CUT),
    "no compiling code": ((NO_COMPILE,) * G, module.NO_COMPILE),
    "code in some": ((NO_COMPILE, NO_CODE) * 2, module.NO_COMPILE),
    "masked": ((MASKED,) * G, module.MASKED),
    "all but one masked": ((MASKED,) * 3 + (HACK,), module.SINGLE),
    "half masked": ((NO_CODE,) * 2 + (MASKED,) * 2, module.PARTLY),
    "discarded": ((ROUTED, WRONG, WRONG, WRONG), module.DISCARDED),
    "shaped": ((HACK, WRONG, WRONG, WRONG), module.SHAPED),
    "odd equal rewards": ((HACK | {"reward": 0.5}, WRONG) * 2, module.SAME),
}


def group(p: int, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of prompt p; what is not said is that of a finished, graded row without advantage."""
    blank: dict[str, Any] = {
        "reward": 0.5, "infra": False, "format_ok": True, "compiles": True, "gt_correct": False, "exploited": False,
        "finished": True, "advantage": 0.0, "d_grad": 1.0, "q_grad": 0.0, "problem_id": f"problem-{p}",
    }  # fmt: skip
    return [blank | row | {"id": f"7/{p}/{g}"} for g, row in enumerate(rows)]


@gate.invariant("each kind of idle group is told from the others; one row that teaches makes the step a learning one")
def _():
    kinds = {value for value in vars(module).values() if isinstance(value, Kind)}
    for name, (rows, expected) in CASES.items():
        found = kind_of(group(0, *rows))
        assert found == expected, f"{name}: {found.text!r}, expected {expected.text!r}"
        line = diagnosis(group(0, *rows))
        assert line and "\n" not in line and expected.text in line and expected.remedy in line, line
        assert diagnosis(group(0, *rows) + group(1, TEACHES, WRONG, WRONG, WRONG)) is None, name
    assert {kind for _, kind in CASES.values()} == kinds and len({k.text for k in kinds}) == len(kinds)
    assert diagnosis([]) is None
    for reward, rows in ((0.5, CASES["wrong"][0]), (3.5, CASES["correct, one masked"][0]), (0, CASES["no code"][0])):
        assert f", reward {reward:g} (problem-0)" in (diagnosis(group(0, *rows)) or ""), reward
    return f"{len(CASES)} cases, {len(kinds)} kinds"


@gate.invariant(
    "the line counts prompts, names at most six, puts the most frequent kind first; its remedies are options"
)
def _():
    rows = [CASES[name][0] for name in ("wrong", "no code", "wrong", "correct", "wrong", "wrong", "wrong")]
    records = [record for p, of in enumerate(rows) for record in group(p, *of)]
    said = diagnosis(records)
    assert said == (
        "learned nothing from its rewards (7 prompts): 5 where every row is wrong in the right form, reward 0.5 (problem-0, "
        "problem-2 and 3 more); 1 where no row has a code block, reward 0 (problem-1); 1 where every row is correct, reward "
        "3.5 (problem-3). Remedy: mix in teacher rows (--rollout.mix-ratio), sample larger groups (--grpo.group-size) or use "
        "easier problems"
    ), said
    for prompts in (1, 6, 7, 40):
        line = diagnosis([record for p in range(prompts) for record in group(p, *CASES["wrong"][0])])
        assert line is not None and line.count("problem-") == min(prompts, SHOWN), line
        assert (f"and {prompts - SHOWN} more" in line) == (prompts > SHOWN)
    many = [record for p, (of, _) in enumerate(CASES.values()) for record in group(p, *of)]
    assert (diagnosis(many) or "").count("problem-") <= SHOWN
    config, options = preset("smoke", "routeV"), set()
    for kind in (value for value in vars(module).values() if isinstance(value, Kind)):
        for section, option in re.findall(r"--(\w+)\.([\w-]+)", kind.remedy):
            assert hasattr(getattr(config, section), option.replace("-", "_")), f"--{section}.{option}"
            options.add(f"--{section}.{option}")
    warnings: list[str] = []
    sink = logger.add(lambda message: warnings.append(message.record["message"]), level="WARNING")
    warn_if_idle(7, records)
    warn_if_idle(8, group(0, TEACHES, WRONG, WRONG, WRONG))
    warn_if_idle(9, group(0, TEACHES, WRONG, MASKED, MASKED))
    logger.remove(sink)
    masked = "step 9: 2 of 4 rows are masked, their grades failed for reasons of the machine"
    assert warnings == [f"step 7 {said}", masked], warnings
    return f"{len(said or '')} characters for 7 prompts; {', '.join(sorted(options))}"


@gate.invariant("in steps of the training loop there is a diagnosis exactly where no row taught a block", slow=True)
def _():
    idle = (
        (Case("flat", "none", "", FLAT), module.WRONG.text),
        (Case("masked", "none", "", masked=tuple(range(6))), module.MASKED.text),
        (Case("discarded", "label_route", "", ONE_HACK), module.DISCARDED.text),
        (Case("screened", "screening", "", ONE_HACK), module.SHAPED.text),
        (Case("flat", "routeV", "", FLAT, settings={"edges": "mean"}), module.WRONG.text),
    )
    for case, text in idle:
        row, records = taken(case)
        assert text in (diagnosis(records) or ""), (case.name, diagnosis(records))
        assert row.values["share_keep"] is None and row.values["grad_norm"] is None, case.name
    learning = (Case("spread", "none", ""), Case("one hack", "none", "", ONE_HACK), Case("labels", "label_route", ""))
    for case in learning:
        row, records = taken(case)
        assert diagnosis(records) is None and row.values["share_keep"] is not None, case.name
    return f"{len(idle)} idle steps, {len(learning)} learning ones"


if __name__ == "__main__":
    gate.main()
