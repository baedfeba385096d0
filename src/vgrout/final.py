"""The evaluation of a run's adapter as it stands, and the tables that are printed of it with all their marks."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from vgrout.config import RunConfig
from vgrout.directions.placebo import parse_source
from vgrout.env.grader import Grader
from vgrout.evals import (
    ALL,
    CONTROLS,
    HELD_OUT,
    TRAIN,
    VIEW_NAMES,
    Cell,
    collapsed,
    evaluate,
    find,
    tabulate,
    twins,
)
from vgrout.inputs import SETS, evaluation_sampler
from vgrout.interventions import intervention_class
from vgrout.models import LoadedModel
from vgrout.policy import Policy
from vgrout.presets import design_named
from vgrout.run.intervals import proportion
from vgrout.run.table import summary_table
from vgrout.selectivity import loaded, selectivity, selectivity_text
from vgrout.splits import BOTH, Data


def evaluate_views(
    config: RunConfig[Any], loaded: LoadedModel, policy: Policy, grader: Grader, data: Data
) -> dict[str, Any]:
    """The final evaluation of the adapter as it stands, with what its figures must be read with.

    Held-out problems in all views, of a routed intervention with its controls and the selectivity of each ablation;
    training problems in `full` and `deploy`. The same adapter gives the same record, timings aside, and no random state
    is touched.
    """
    e = config.eval
    routed = intervention_class(config.intervention).routed
    held_out, trained = data.final
    views = tuple(dict.fromkeys((*held_out.views, *(CONTROLS if routed and e.controls else ()))))
    asked = (replace(held_out, views=views), trained)
    name = config.eval_problems or f"held-out part of {config.problems if config.problems in SETS else 'builtin'}"
    header = {
        "training_problems": config.problems,
        "intervention": config.intervention,
        "upper_bound": config.upper_bound,
        "missing_layers": list(grader.missing_layers),
        "removal_seed": e.removal_seed,
        "shrinkage": all(module.blocks_equal for module in policy.adapter.modules)
        and policy.adapter.block_norm("deployed", "moved") > 0,
    }
    sampler = evaluation_sampler(config, loaded, policy)
    with policy.adapter.removing(e.removal_seed):
        result = evaluate(sampler, grader, asked, samples=e.samples, sets=name, twins=twins(policy.adapter))
    found = selectivity([result["rows"]]) if routed else []
    bad = collapsed(tabulate(result["rows"]))
    return result | header | {"selectivity": [asdict(entry) for entry in found], "collapsed": bad}


def eval_table(result: dict[str, Any], config: RunConfig[Any]) -> str:
    """The final table; the view that ships is named in its title."""
    ships = f"the {VIEW_NAMES[result['deploy_view']]} model ships"
    title = f"final evaluation of {marked(config)}; held-out problems: {result['problems']}; {ships}"
    if config.oracle_tuned_on:
        title += f"; {tuning(config)}"
    text = view_table(result, title)
    if intervention_class(config.intervention).routed and not result["selectivity"]:
        text += "\nSelectivity is undefined: no hinted prompts were answered in the full view and in an ablation of it."
    return f"{text}\n\n{square(result)}"


def tuning(config: RunConfig[Any]) -> str:
    """The mark of settings that were tuned with the oracle's help; empty where they were not."""
    return f"oracle-tuned on {config.oracle_tuned_on}" if config.oracle_tuned_on else ""


def square(result: dict[str, Any]) -> str:
    """The final 2x2: {training problems with train markers, held-out ones with eval markers} x {full, deploy}."""
    cells = tabulate(result["rows"])
    head = ("the final 2x2, all hinted prompts", *(VIEW_NAMES[view] for view in BOTH))
    lines = [head]
    for split, markers, name in ((TRAIN, "train", "training problems"), (HELD_OUT, "eval", "held-out problems")):
        found = [find(cells, view, markers, ALL, split) for view in BOTH]
        lines.append((f"{name}, {markers} markers", *(_hack_and_solve(cell) for cell in found)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(f"{t:{w}}" for t, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _hack_and_solve(cell: Cell | None) -> str:
    if cell is None:
        return "not evaluated"
    hack, solve = (
        proportion(cell.hacks, cell.n, cell.hack_interval),
        proportion(cell.solves, cell.n, cell.solve_interval),
    )
    return f"hack {hack}, solve {solve}"


def view_table(result: dict[str, Any], title: str) -> str:
    """The cells of an evaluation under a title, then the selectivity of its ablations where it has been computed; a flag
    for every view that has collapsed; what limits the figures."""
    cells = tabulate(result["rows"])
    notes = [selectivity_text(loaded(result["selectivity"]))] if result["selectivity"] else []
    bad = collapsed(cells)
    notes += [f"COLLAPSED: {VIEW_NAMES[view]} {why}; its hack rate says nothing" for view, why in bad.items()]
    if "full" in bad and result["selectivity"]:
        notes.append("The full model has collapsed, so selectivity, which is relative to it, is no result here.")
    if result["samples"] > 1:
        notes.append(f"Intervals are over problems: the {result['samples']} answers to a prompt count as one cluster.")
    if result["shrinkage"]:
        notes.append(
            "SHRINKAGE CONTROL: both blocks are the same change of every weight; the ablation halves it, no more."
        )
    if result["missing_layers"]:
        notes.append(f"Graded in a sandbox without {', '.join(result['missing_layers'])}.")
    return "\n".join([summary_table([cell.summary() for cell in cells], title), *notes])


def changed_settings(config: RunConfig[Any]) -> list[str]:
    """Of a run with a design: the settings of the design that it does not have."""
    found = []
    for name, value in design_named(config.design or "").options.items():
        own: Any = config
        for part in name.split("."):
            own = getattr(own, part)
        if own != value:
            found.append(f"but {name.rpartition('.')[2]} {own}")
    return found


def marked(config: RunConfig[Any]) -> str:
    """The intervention's name, with the mark that every output of an upper bound carries."""
    name = config.intervention + (
        f" [{', '.join((config.design, *changed_settings(config)))}]" if config.design else ""
    )
    uses = intervention_class(config.intervention).needs_direction
    if config.direction != "real" and (uses or parse_source(config.direction).upper_bound):
        name += f" ({config.direction})"
    if config.env.inoculation is not None:
        name += f" [inoculation {config.env.inoculation}]"
    return name + (" (UPPER BOUND: reads ground truth)" if config.upper_bound else "")
