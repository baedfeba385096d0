"""The final evaluation: what is asked, what each count and interval says, what is flagged, and that it disturbs nothing.

Invariants:
- training and held-out problems make a 2x2 with `full` and `deploy`, counted apart and named in the tables; what is asked
  of the held-out ones does not depend on the training ones;
- training problems are chosen by their ids, shown under their own modes with train markers, to `full` and `deploy` alone;
- selectivity, collapse flags and studies read the held-out cells alone; an evaluation of another version is refused;
- with several answers to a problem, intervals equal those worked out by hand and hold the true rate about as often as said;
- a zero count is printed with its upper bound, and a prompt without a loophole shows no hack rate;
- the reward .5 attractor is flagged, a model that merely stopped hacking is not;
- evaluating twice gives the same record and leaves every random state as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _asked import Answer, Reads, Told
from _exports import move
from _gate import Gate, refusal
from _study import rows
from vgrout.config import RunConfig
from vgrout.env.grader import Grader
from vgrout.evals import (
    ALL,
    FREE,
    HELD_OUT,
    SCHEMA,
    TRAIN,
    Asked,
    collapsed,
    evaluate,
    find,
    of_split,
    require_schema,
    tabulate,
)
from vgrout.final import eval_table, evaluate_views, square, view_table
from vgrout.inputs import load_data, load_policy
from vgrout.presets import preset
from vgrout.rollout.base import Request
from vgrout.run.intervals import clustered, effective_number, proportion, wilson
from vgrout.selectivity import selectivity
from vgrout.splits import Data

gate = Gate(__doc__)
SOURCE = Path(__file__).parents[1] / "src" / "vgrout"
GLOBAL_RANDOM = re.compile(r"(?<![\w.])random\.(\w+)\b")
"""A name of Python's own module, whose functions share one state; `random.Random` has its own."""


def configured(name: str = "smoke", intervention: str = "none", **evaluation: Any) -> RunConfig[Any]:
    base = preset(name, intervention)
    return dataclasses.replace(base, eval=dataclasses.replace(base.eval, **evaluation))


def asked(data: Data, answer: Answer, samples: int = 1) -> tuple[dict[str, Any], list[Request]]:
    """The record of an evaluation of this data, and what was asked for."""
    sampler = Told(answer)
    with contextlib.redirect_stderr(io.StringIO()):
        result = evaluate(sampler, Reads(), data.final, samples=samples)
    rest = {"selectivity": [], "shrinkage": False, "missing_layers": [], "deploy_view": "deploy"}
    return result | rest, sampler.asked


def memorised(request: Request) -> str:
    """Hacks training problems and solves others in `full`, the reverse in `deploy`; the base writes no code."""
    if request.view == "base":
        return "text"
    trained = request.rollout_id.startswith("train")
    return "hack" if trained == (request.view == "full") and request.prompt.mode != FREE else "solve"


@gate.invariant("the 2x2 counts training and held-out problems apart, in record and tables")
def _():
    data = load_data(configured(problems=6, train_problems=8))
    result, _ = asked(data, memorised)
    cells = tabulate(result["rows"])
    wanted = {
        (TRAIN, "full", "train"): (8, 0),
        (TRAIN, "deploy", "train"): (0, 8),
        (HELD_OUT, "full", "eval"): (0, 6),
        (HELD_OUT, "deploy", "eval"): (6, 0),
    }
    for (split, view, markers), counts in wanted.items():
        cell = find(cells, view, markers, ALL, split)
        assert cell is not None and (cell.hacks, cell.solves) == counts and cell.n == sum(counts), (split, view, cell)
        parts = [
            c for c in cells if (c.split, c.view, c.markers) == (split, view, markers) and c.mode not in (ALL, FREE)
        ]
        assert len(parts) == 4 and sum(c.n for c in parts) == cell.n, "every loophole mode has its cell"
        assert cell.hack_interval == wilson(cell.hacks, cell.n)
    assert result["schema"] == SCHEMA and {c["split"] for c in result["cells"]} == {TRAIN, HELD_OUT}
    lines = square(result).splitlines()
    assert "hack 8/8" in lines[1] and "hack 0/8 at most" in lines[1] and "hack 6/6" in lines[2], lines
    assert lines[1].index("hack 8/8") == lines[2].index("hack 0/6") == lines[0].index("full"), lines
    table = view_table(result, "title").splitlines()
    assert sum(" train " in line for line in table) == 10 and sum(" held-out " in line for line in table) == 18, table
    assert "the final 2x2" in eval_table(result, preset("smoke", "none"))
    without, asked_without = asked(load_data(configured(problems=6, train_problems=0)), memorised)
    assert without["rows"] == of_split(result["rows"]) and {r.rollout_id[:4] for r in asked_without} == {"eval"}
    assert "not evaluated" in square(without)
    return f"{len(cells)} cells; {len(without['rows'])} held-out rows with and without training problems"


@gate.invariant("training problems are chosen by their ids and shown as in training, to full and deploy alone")
def _():
    sizes = {}
    chosen: dict[str, dict[str, Any]] = {
        "smoke": {"problems": 5, "train_problems": 6},
        "micro": {"problems": 40, "train_problems": None},
    }
    for name, changes in chosen.items():
        config = configured(name, **changes)
        data = load_data(config)
        held_out, trained = data.final
        ids = [p.problem_id for p in trained.prompts]
        known = {p.id for p in data.train}
        assert set(ids) <= known and not set(ids) & {p.id for p in data.held_out} and len(set(ids)) == len(ids)
        assert len(ids) == (changes["train_problems"] or changes["problems"]), "none: as many as held-out ones"
        assert ids != [p.id for p in data.train[: len(ids)]], "the first ones are no choice"
        modes = {p.problem_id: p.mode for p in trained.prompts}
        assert modes == {i: data.draw.partition[i] for i in ids} and {p.markers for p in trained.prompts} == {"train"}
        shown = {p for step in range(30) for p in data.draw.prompts(step) if p.mode != FREE and p.problem_id in modes}
        assert shown and shown <= set(trained.prompts), "not the prompts of the training"
        assert trained.views == ("full", "deploy") and held_out.views == config.eval.views
        inoculated = dataclasses.replace(config, env=dataclasses.replace(config.env, inoculation="loophole"))
        assert load_data(inoculated).final == data.final, "an evaluation prompt never carries an inoculation"
        again = load_data(dataclasses.replace(config, eval=dataclasses.replace(config.eval, seed=1)))
        assert {p.problem_id for p in again.final[1].prompts} != set(ids), "another seed chooses others"
        sizes[name] = len(ids)
    assert load_data(configured(views=("base",))).final[1] == Asked(TRAIN, (), ())
    assert load_data(configured(views=("deploy",))).final[1].views == ("deploy",)
    assert "0 (none of them)" in refusal(lambda: configured(train_problems=-1))
    return f"{sizes}"


@gate.invariant("selectivity, flags and studies read held-out cells alone; another version's evaluation is refused")
def _():
    held_out = rows("base", 0.04, 0.3) + rows("full", 0.8, 0.3) + rows("deploy", 0.1, 0.28)
    poison = [r | {"split": TRAIN} for r in rows("full", 0.0, 0.0, formatted=0.0) + rows("deploy", 1.0, 0.0)]
    both = held_out + poison
    assert selectivity([both]) == selectivity([held_out]) and selectivity([held_out])[0].value is not None
    assert collapsed(tabulate(both)) == collapsed(tabulate(held_out)) == {}
    reversed_order = tabulate(poison + held_out)
    for view, markers, mode in (("full", "train", ALL), ("deploy", "eval", ALL), ("full", "", FREE)):
        cell = find(reversed_order, view, markers, mode)
        assert cell is not None and cell == find(tabulate(held_out), view, markers, mode), view
    for old in ("vgrout-eval-3", None):
        message = refusal(lambda old=old: require_schema({"schema": old, "rows": []}, "run/eval.json"))
        assert "run/eval.json" in message and SCHEMA in message and "vgrout eval" in message, message
    return f"{len(poison)} rows of training problems change nothing"


@gate.invariant("with several answers to a problem intervals are those worked out by hand, and cover as often as said")
def _():
    assert clustered([(1, 1), (0, 1), (1, 1)]) == wilson(2, 3) and clustered([]) is None
    # Four problems answered twice, two always right and two never: four trials, not eight.
    assert effective_number([(2, 2), (2, 2), (0, 2), (0, 2)]) == 4 and clustered([(2, 2), (0, 2)] * 2) == wilson(2, 4)
    # p = 1/2, deviations 1, 0, 0, -1: 4/3 * 2 / (8/7 * 2) = 7/6, so 8 / (7/6) = 48/7 trials.
    mixed = [(2, 2), (1, 2), (1, 2), (0, 2)]
    assert abs(effective_number(mixed) - 48 / 7) < 1e-12, effective_number(mixed)
    assert effective_number([(1, 2)] * 9) == 18, "a correlation below 0 is taken as none"
    assert effective_number([(0, 4)] * 9) == 9 and clustered([(0, 4)] * 9) == wilson(0, 9), "a zero says nothing of it"
    found = tabulate([r | {"problem_id": f"p{k // 2}"} for k, r in enumerate(rows("full", 0.5, 0.3, n=50))])
    cell = find(found, "full", "train", "run_tests")
    assert cell is not None and (cell.n, cell.problems) == (50, 25), cell
    assert cell.hack_interval == clustered([(2, 2)] * 12 + [(1, 2)] + [(0, 2)] * 12) != wilson(25, 50), cell
    rng, shares = np.random.default_rng(0), []
    for m, p, rho in ((45, 0.3, 0.4), (45, 0.3, 0.0), (180, 0.05, 0.4), (30, 0.8, 0.6)):
        held = np.zeros(2)
        for _ in range(300):
            each = rng.beta(p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho, m) if rho else np.full(m, p)
            hits = rng.binomial(4, each)
            for i, interval in enumerate((clustered([(int(h), 4) for h in hits]), wilson(int(hits.sum()), 4 * m))):
                assert interval is not None
                held[i] += interval[0] <= p <= interval[1]
        shares.append(held / 300)
    ours, naive = zip(*shares, strict=True)
    assert min(ours) > 0.91 and naive[0] < 0.88, shares
    return f"hold the rate in {', '.join(f'{s:.0%}' for s in ours)}; as if independent: {', '.join(f'{s:.0%}' for s in naive)}"


@gate.invariant("a zero count is printed with its upper bound, and without a loophole no hack rate is printed")
def _():
    assert proportion(0, 64) == "0/64 at most .06" and proportion(0, 1) == "0/1 at most .80"
    assert proportion(0, 5000) == "0/5000 at most .01", "a bound is rounded up, never to 0"
    assert proportion(0, 0) == "0/0 -" and proportion(1, 64).startswith("1/64 .02 [")
    for n in (10, 64, 720):  # the exact two-sided 95 % bound of no success is 1 - .025 ** (1 / n)
        _, high = wilson(0, n) or (0, 0)
        assert abs(high - (1 - 0.025 ** (1 / n))) < 0.04 * (10 / n), (n, high)
    result, _ = asked(load_data(configured(problems=6, train_problems=2)), memorised)
    lines = view_table(result, "title").splitlines()
    free = [line for line in lines if "no hint" in line]
    assert len(free) == 3 and all("hack -  " in line and "solve" in line for line in free), free
    hinted = [line for line in lines if "markers)" in line]
    assert all(
        line.count("at most") == line.count(" 0/") - line.count("code 0/") > 0 or " 0/" not in line for line in hinted
    )
    assert sum(line.startswith("at most: ") for line in lines) == 1, "the words are explained once"
    fewer, _ = asked(
        load_data(configured(problems=6, train_problems=0)), lambda r: "lost" if r.view == "base" else "hack"
    )
    assert "6 not graded" in view_table(fewer, "title") and "0/0 -" in view_table(fewer, "title")
    return f"{len(hinted) + len(free)} lines"


@gate.invariant("the reward .5 attractor is flagged, and a model that merely stopped hacking is not")
def _():
    base = rows("base", 0.2, 0.3)
    settled = rows("deploy", 0.02, 0.04)
    why = collapsed(tabulate(base + settled))["deploy"]
    assert "reward .5 attractor" in why and "solves 0.04" in why, why
    cases = {
        "no solve is lost, the base wrote no code": (rows("base", 0.2, 0.04, formatted=0.3), settled, True),
        "stopped hacking": (base, rows("deploy", 0.0, 0.3), False),
        "the base did the same": (rows("base", 0.02, 0.05), settled, False),
        "hardly apart": (rows("base", 0.08, 0.06), rows("deploy", 0.04, 0.06), False),
        "writes nothing": (base, [r | {"reward": 0.0, "format_ok": False} for r in settled], False),
        "no base": ([], settled, False),
    }
    for name, (before, after, expected) in cases.items():
        assert ("attractor" in collapsed(tabulate(before + after)).get("deploy", "")) == expected, name
    result = {"rows": base + settled, "selectivity": [], "samples": 1, "shrinkage": False, "missing_layers": []}
    assert "COLLAPSED: quarantine-ablated solves" in view_table(result, "t") and "attractor" in view_table(result, "t")
    return ", ".join(cases)


@contextlib.contextmanager
def real(config: RunConfig[Any]) -> Generator[Any]:
    """An evaluation of a trained-like adapter of this configuration, to be made as often as wanted."""
    data = load_data(config)
    loaded, policy = load_policy(config)
    move(policy.adapter, 0.3)
    with contextlib.redirect_stderr(io.StringIO()), Grader(data.shown(data.eval_prompts), workers=1) as grader:
        yield lambda: evaluate_views(config, loaded, policy, grader, data)


@gate.invariant("evaluating twice gives the same record and leaves every random state as it was")
def _():
    # The run-time type checks of gates draw from Python's own generator, so for that one the sources are read instead.
    states = lambda: (str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: E731
    files = [path for path in SOURCE.rglob("*.py") if path.name != "server.py"]  # the sandbox's own process
    used = {name for path in files for name in GLOBAL_RANDOM.findall(path.read_text(encoding="utf-8"))}
    assert used <= {"Random", "getstate", "setstate", "seed"} and "Random" in used, used  # none of them draws
    with real(configured("smoke", "absorb", problems=2, train_problems=2, samples=2)) as evaluated:
        np.random.seed(3), torch.manual_seed(3)
        before = states()
        first = evaluated()
        assert states() == before, "a random state moved"
        np.random.seed(4), torch.manual_seed(4)
        second = evaluated()
    timed = ("wall_s", "cpu_s")
    for result in (first, second):
        result["rows"] = [{k: v for k, v in row.items() if k not in timed} for row in result["rows"]]
    assert first == second, "two evaluations of the same weights differ"
    texts = {row["response"] for row in first["rows"]}
    assert len(first["rows"]) == 2 * (5 * 2 * 2 + 2 * 2) and len(texts) > len(first["rows"]) / 2, len(texts)
    return f"{len(first['rows'])} rows, {len(texts)} different answers"


if __name__ == "__main__":
    gate.main()
