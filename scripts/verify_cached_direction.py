"""A direction is the same whether it was extracted or read from its file.

- every part has its modules in the order of their names, extracted, stored and read, and renewed
- live edges after a renewal, and a router's state, do not depend on where the first direction came from
- modules in another order are refused by buffer and router
- two runs of one seed are equal bit for bit, timings aside, though the second one reads the direction's file
- a step in which no group has spread moves nothing under any form of routeV
- controls of the direction are refused where they would control nothing
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from _gate import Gate, refusal
from _models import adapted, step_of
from _pairs import extractor_of, sides_of
from vgrout.direction_inputs import require_use
from vgrout.directions.artefact import describe, load_direction, save_direction
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.direction import Direction
from vgrout.directions.gate import Gate as Band
from vgrout.directions.gate import GateSettings
from vgrout.directions.live import LiveDirection
from vgrout.directions.placebo import Source
from vgrout.grpo import GrpoConfig
from vgrout.interventions.moe import Moe, MoeSettings
from vgrout.interventions.routeV import RouteV, RouteVSettings
from vgrout.observe import observe
from vgrout.presets import preset
from vgrout.train import train
from vgrout.update import update

gate = Gate(__doc__)
STEP = step_of([[3.0, 0.5, 2.0, 3.0], [3.0, 0.5, 0.0, 0.5]], labels=False)
PARTS: tuple[frozenset[Any], ...] = (frozenset({"act"}), frozenset({"grad"}), frozenset({"hack"}))


def both() -> tuple[Any, Direction, Direction]:
    """An extractor, a direction of it, and the same one read from a file."""
    model, adapter = adapted(double=False)
    extractor = extractor_of(model, adapter, sides_of(6), top_k=4, k_use=2)
    identity = describe(
        model={"model": "m", "revision": "none", "dtype": "fp32", "tokenizer": "t"},
        adapter=adapter.identity() | {"fold": True},
        sizes=adapter.deployed_sizes(),
        pairs="p",
        source=Source(),
        config=ExtractionConfig(top_k=4, k_use=2),
        temperature=0.8,
        max_new=12,
    )
    first = extractor.extract()
    with tempfile.TemporaryDirectory() as folder:
        save_direction(Path(folder) / "d.safetensors", first, identity)
        return extractor, first, load_direction(Path(folder) / "d.safetensors", identity)


@gate.invariant("every part has its modules in the order of their names, extracted, read and renewed")
def _():
    extractor, *directions = both()
    directions += [extractor.extract(parts) for parts in PARTS]
    count = 0
    for d in directions:
        for found in (d.hack.axes, d.act, *d.grad.values(), *d.probes.values()):
            assert list(found) == sorted(found), list(found)[:4]
            count += bool(found)
    assert list(extractor.activations()) == sorted(extractor.activations())
    return f"{count} parts of {len(directions)} directions"


@gate.invariant("live edges after a renewal do not depend on where the direction came from; another order is refused")
def _():
    extractor, *directions = both()
    rows = observe(extractor.policy, STEP.groups, "activations", token_budget=10_000)
    cuts = []
    for d in directions:
        band = Band(GateSettings(edges="live"), "three_way")
        live = LiveDirection(extractor, d, frozenset({"act"}))
        for vectors in (live.act, extractor.extract(frozenset({"act"})).act):
            band.scores(rows, {"deploy": vectors}, "deploy", range(8))
            before = band.buffer.cuts
            band.end_step()
        assert before is not None
        cuts.append(before)
        turned = dict(reversed(list(live.act.items())))
        try:
            band.scores(rows, {"deploy": turned}, "deploy", range(8))
        except ValueError as error:
            assert "remember" in str(error)
        else:
            raise AssertionError("another order was taken")
    assert cuts[0] == cuts[1], cuts
    return f"edges {cuts[0][0]:.3f}, {cuts[0][1]:.3f} both ways"


@gate.invariant("a router's state means the same to a run that read its direction; another order is refused")
def _():
    extractor, first, read = both()
    rows = observe(extractor.policy, STEP.groups, "activations", token_budget=10_000)
    routers = []
    for d in (first, read):
        moe = Moe(MoeSettings(), extractor.policy.adapter, 0)
        moe.prepare(LiveDirection(extractor, d, frozenset()))
        routers.append(moe)
    state = routers[0].state_dict()
    routers[1].load_state_dict(state)
    w = [torch.sigmoid(m.router(m.router.flat(rows) - m.centre)) for m in routers]
    assert torch.equal(w[0], w[1])
    try:
        routers[1].load_state_dict(state | {"modules": tuple(reversed(state["modules"]))})
    except ValueError as error:
        assert "order" in str(error)
    else:
        raise AssertionError("another order was taken")
    return f"w of 8 rows bit-equal, {float(w[0].min()):.2f} to {float(w[0].max()):.2f}"


@gate.invariant(
    "two runs of a seed are equal bit for bit though one extracted and the other read the direction", slow=True
)
def _():
    compared = 0
    for intervention, design in (("routeA", "live-quantile"), ("moe", None), ("routeV", None)):
        with tempfile.TemporaryDirectory() as out:
            found = []
            for name in ("first", "second"):
                config = preset("smoke", intervention, None, design)
                config = dataclasses.replace(
                    config, steps=4, out=Path(out), name=name, eval=dataclasses.replace(config.eval, problems=1)
                )
                with contextlib.redirect_stdout(io.StringIO()):
                    run = train(config)
                rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                found.append([{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows])
            assert found[0] == found[1], intervention
            compared += len(found[0])
    return f"{compared} steps of 3 interventions"


@gate.invariant("a step in which no group has spread moves nothing under any form of routeV")
def _():
    idle = step_of([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]], labels=False)
    config = GrpoConfig(prompts_per_step=2, group_size=3, beta=0.0, checkpoint_activations=False)
    extractor, first, _ = both()
    forms: tuple[dict[str, Any], ...] = (
        {},
        {"feature": "nll"},
        {"feature": "raw", "clean": "zeroed"},
        {"edges": "live"},
    )
    for form in forms:
        own = RouteV(RouteVSettings(**form), extractor.policy.adapter, 0)
        own.prepare(LiveDirection(extractor, first, frozenset()))
        stats = update(
            extractor.policy, idle.groups, idle.seen, idle.rewards, idle.keep, own, config, max_new=12, step=0
        )
        assert stats.n_moving == 0 and not any(bool(g.any()) for g in extractor.policy.adapter.gradients())
        own.after_step(0)
    return f"{len(forms)} forms"


@gate.invariant("controls of the direction are refused where they would control nothing")
def _():
    cases = [("erase", "random_label"), ("absorb", "haar:1"), ("label_route", "shuffled:1"), ("none", "random_label")]
    for intervention, direction in cases:
        config = dataclasses.replace(preset("smoke", intervention), direction=direction)
        assert direction in refusal(lambda config=config: require_use(config))
    for intervention in ("routeV", "routeA", "moe", "advantage_mod"):
        require_use(dataclasses.replace(preset("smoke", intervention), direction="random_label"))
    require_use(dataclasses.replace(preset("micro", "none"), direction="haar:1"))
    return f"{len(cases)} refused, 5 taken"


if __name__ == "__main__":
    gate.main()
