"""Direction files, refresh, and placebos (spec 4.2, 4.4, 4.5).

- refresh: every so many steps, the overlap as computed from principal angles; 0 is frozen; a state dict comes back in
  the middle of a cycle bit for bit
- artefacts come back exactly, and every mismatch is refused by name; torn, foreign and incomplete files too
- shuffled and Haar: what they change, and that exactly half of the labels are exchanged
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from _gate import Gate, refusal
from _models import adapted, block_grads, largest, policy_of
from _pairs import T, extractor_of, sides_of
from vgrout.adapter.base import Adapter
from vgrout.directions.artefact import describe, load_direction, save_direction
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.direction import Direction
from vgrout.directions.gradient import NllOptions, pair_gradients
from vgrout.directions.live import LiveDirection
from vgrout.directions.pairs import Pair
from vgrout.directions.placebo import Source, blinded, parse_source, relabelled
from vgrout.directions.subspace import overlap

gate = Gate(__doc__)
SIDES = sides_of(5)


@gate.invariant("refresh: on time, with the overlap of principal angles; 0 is frozen; the state comes back mid-cycle")
def _():
    model, adapter = adapted(double=False)
    extractor = extractor_of(model, adapter, SIDES, refresh_every=3, top_k=4, k_use=2)
    live = LiveDirection(extractor, extractor.extract())
    first = copy.deepcopy(live.subspace)
    seen = []
    saved: dict[str, Any] = {}
    for step in range(5):
        with torch.no_grad():
            for p in adapter.parameters():
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(p)
        live.after_step(step)
        seen.append((live.age, live.overlap is not None))
        if step == 3:
            saved = copy.deepcopy(live.state_dict())
    assert seen == [(1, False), (2, False), (0, True), (1, True), (2, True)], seen
    cosines = []
    for name, a in first.axes.items():
        b = live.subspace.axes[name]
        if name in live.subspace.axes:
            cosines.append(float(torch.linalg.svdvals(a.V @ b.V.T).square().sum()) / min(len(a.V), len(b.V)))
    assert (
        live.overlap is not None and abs(sum(cosines) / len(cosines) - live.overlap) < 1e-6 and 0 < live.overlap < 0.999
    )
    other = LiveDirection(extractor, extractor.extract())
    other.load_state_dict(saved)
    other.after_step(4)
    for key in ("V", "S"):
        mine, theirs = live.state_dict()[key], other.state_dict()[key]
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert other.stats() == live.stats()
    frozen = LiveDirection(extractor_of(model, adapter, SIDES, refresh_every=0), extractor.extract())
    with mock.patch.object(type(extractor), "extract", side_effect=AssertionError("extracted again")):
        for step in range(4):
            frozen.after_step(step)
    assert frozen.age == 4 and frozen.overlap is None
    itself = overlap(first, first)
    assert itself is not None and abs(itself - 1) < 1e-6
    return f"renewed after 3 of 5 steps, overlap {live.overlap:.3f}; resumed after step 4 with the same axes"


MODEL = {"model": "tiny", "revision": "0", "dtype": "fp32", "tokenizer": "t0"}


def described(of: Adapter, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": MODEL,
        "adapter": of.identity() | {"fold": True},
        "sizes": of.deployed_sizes(),
        "pairs": "hash",
    }
    base |= {"source": Source()}
    base |= {"config": ExtractionConfig(), "temperature": T, "max_new": 12}
    return describe(**{**base, **changes})


@gate.invariant("artefacts come back exactly; every mismatch is refused by name, torn and incomplete files too")
def _():
    model, adapter = adapted(double=False)
    direction = extractor_of(model, adapter, SIDES, top_k=4, k_use=2).extract()
    expected = described(adapter)
    refused = 0
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "d.safetensors"
        save_direction(path, direction, expected)
        back = load_direction(path, expected)
        assert same(direction, back), "the direction changed on its way"
        ranks = dict(adapter.identity()["module_ranks"])
        first = next(iter(ranks))
        identity = adapter.identity()
        others: dict[str, dict[str, Any]] = {
            key: {"model": MODEL | {key: "other"}} for key in ("model", "revision", "dtype", "tokenizer")
        } | {
            "adapter": {"adapter": identity | {"adapter": "delta_s"}},
            "rank": {"adapter": identity | {"rank": 7}},
            "init_seed": {"adapter": identity | {"init_seed": 9}},
            "module_ranks": {"adapter": identity | {"module_ranks": ranks | {first: 99}}},
            "basis": {"adapter": identity | {"basis": "other"}},
            "fold": {"adapter": identity | {"fold": False}},
            "sizes": {"sizes": adapter.deployed_sizes() | {first: 1}},
            "pairs": {"pairs": "another"},
            "direction": {"source": parse_source("haar:1")},
            "top_k": {"config": ExtractionConfig(top_k=11)},
            "token_norm": {"config": ExtractionConfig(token_norm="sum")},
            "temperature": {"temperature": 0.5},
        }
        for what, change in others.items():
            message = refusal(lambda change=change: load_direction(path, described(adapter, **change)))
            assert f"its {what} is" in message, (what, message)
            refused += 1
        with mock.patch("vgrout.directions.artefact.version", lambda name: "9.9"):
            assert "its libraries is" in refusal(lambda: load_direction(path, described(adapter)))
        with mock.patch("vgrout.directions.artefact.code_hash", lambda: "other"):
            assert "its code is" in refusal(lambda: load_direction(path, described(adapter)))
        fixed = described(adapter, config=ExtractionConfig(token_norm="fixed"))
        save_direction(path, direction, fixed)
        longer = described(adapter, config=ExtractionConfig(token_norm="fixed"), max_new=13)
        assert "its max_new is" in refusal(lambda: load_direction(path, longer))
        less = dataclasses.replace(direction, act={n: v for n, v in direction.act.items() if n != first})
        save_direction(path, less, expected)
        assert f"v_act/{first}" in refusal(lambda: load_direction(path, expected))
        broken = dataclasses.replace(direction, act=direction.act | {first: direction.act[first] * float("nan")})
        save_direction(path, broken, expected)
        assert "not finite" in refusal(lambda: load_direction(path, expected))
        V, S = direction.hack.axes[first].V, direction.hack.axes[first].S
        save_direction(path, direction, expected)
        good = load_file(path)
        for what, (bad_V, bad_S) in {
            "columns": (torch.cat([V, V[:, :3]], dim=1), S),
            "too few values": (V, S[:-1].clone()),
            "one dimension": (V[0].clone(), S[:1].clone()),
            "ten times": (10 * V, S),
            "whole numbers": (V.int(), S),
            "another type": (V.double(), S),
            "negative": (V, -S),
            "unsorted": (V, S.flip(0)),
        }.items():
            changed = {f"v_hack/{first}": bad_V.contiguous(), f"_sv/{first}": bad_S.contiguous()}
            save_file(good | changed, path, metadata={"vgrout": json.dumps(expected)})
            assert first in refusal(lambda: load_direction(path, expected)), what
            refused += 1
        for metadata in ("null", "[1]", '"x"', json.dumps({**expected, "ties": "x"})):
            save_file({"x": torch.zeros(1)}, path, metadata={"vgrout": metadata})
            refusal(lambda: load_direction(path, expected))
            refused += 1
        save_direction(path, direction, expected)
        path.write_bytes(path.read_bytes()[:-10])
        assert "extract" in refusal(lambda: load_direction(path, expected))
        assert "extract" in refusal(lambda: load_direction(path.with_name("absent"), expected))
        save_file({"x": torch.zeros(1)}, path)
        assert "format" in refusal(lambda: load_direction(path, expected))
    return f"{refused + 7} files refused by name"


def same(a: Direction, b: Direction) -> bool:
    equal = lambda x, y: x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)  # noqa: E731
    axes = {n: v.V for n, v in a.hack.axes.items()}, {n: v.V for n, v in b.hack.axes.items()}
    values = {n: v.S for n, v in a.hack.axes.items()}, {n: v.S for n, v in b.hack.axes.items()}
    views = all(equal(a.grad[v], b.grad[v]) and equal(a.probes[v], b.probes[v]) for v in ("full", "deploy"))
    return equal(*axes) and equal(*values) and views and equal(a.act, b.act) and a.hack.ties == b.hack.ties


@gate.invariant("shuffled exchanges exactly half by seed; haar draws axes and exchanges half anew in every module")
def _():
    pairs = tuple(Pair(f"f/{i}", ("f",), (("user", str(i)),), hack=f"h{i}", clean=f"c{i}") for i in range(7))
    drawn = [relabelled(pairs, parse_source(f"shuffled:{seed}")) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len({d for d in drawn}) == 3, "not decided by the seed"
    for d in drawn:
        assert len(d) == 6 and sum(p.hack.startswith("c") for p in d) == 3
    assert relabelled(pairs, Source()) == pairs
    model, adapter = adapted()
    options = NllOptions("mean", 12, 60)
    own = pair_gradients(policy_of(model, adapter, temperature=T), sides_of(6), "deploy", options)
    blind = blinded(own, parse_source("haar:3"))
    patterns = set()
    for name, g in blind.probe.items():
        swapped = tuple(not torch.equal(g[0, p], own.probe[name][0, p]) for p in range(6))
        assert sum(swapped) == 3 and torch.equal(g[:, list(swapped)], own.probe[name][:, list(swapped)].flip(0))
        assert torch.equal(blind.deployed[name][1, 0], own.deployed[name][int(not swapped[0]), 0])
        patterns.add(swapped)
    assert len(patterns) > 3, "the modules share one exchange, whose pooled sign carries the label"
    real = extractor_of(model, adapter, sides_of(6), top_k=4, k_use=2).extract()
    haar = extractor_of(model, adapter, sides_of(6), "haar:3", top_k=4, k_use=2).extract()
    again = extractor_of(model, adapter, sides_of(6), "haar:3", top_k=4, k_use=2).extract()
    assert same(haar, again)
    for name, a in haar.hack.axes.items():
        assert largest(a.V @ a.V.T, torch.eye(len(a.V))) < 1e-6
        assert largest(a.S, real.hack.axes[name].S) < 1e-9, "exchanging sides keeps singular values"
    expected = sum(len(a.V) / a.V.shape[1] for a in haar.hack.axes.values()) / len(haar.hack.axes)
    met = overlap(real.hack, haar.hack)
    assert met is not None and abs(met - expected) < 0.05, (met, expected)
    assert block_grads(adapter) is not None
    return f"3 of 6 exchanged, {len(patterns)} patterns over 14 modules; overlap of Haar with real {met:.3f}, by chance {expected:.3f}"


if __name__ == "__main__":
    gate.main()
