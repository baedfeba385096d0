"""state_dict and load_state_dict of every registered intervention, in the middle of a refresh cycle.

Invariants, for each entry of INTERVENTIONS and for the forms that keep other things (live edges, tokens, features of an own
backward, both router forms, placebos):
- 1 step or 3, the state through torch.save and torch.load into a fresh object on a copy of the adapter, 2 more steps on both
  sides of a refresh: gradients, trained tensors, route, scores, columns and the state itself are bit-equal
- every entry of the state is needed: with any one left as the fresh object had it, something differs, or loading fails
- a state that is held is not written to by later steps; an intervention without state refuses one
"""

from __future__ import annotations

import copy
import io
from typing import Any

import torch

from _gate import Gate
from _models import step_of
from _routers import Rig, rig, same
from vgrout.interventions import INTERVENTIONS

gate = Gate(__doc__)
LIVE: dict[str, Any] = {"edges": "live", "live_half_life": 8.0, "live_quantile": 0.2, "live_buffer": 20}
MEAN: dict[str, Any] = {"edges": "mean"}
SMALL = step_of([[3.0, 0.5, 2.0, 0.0], [0.5, 3.0, 1.0, 3.0]])
Cases = dict[str, tuple[str, dict[str, Any]]]
CASES: Cases = {name: (name, {}) for name in INTERVENTIONS} | {
    "routeV": ("routeV", MEAN),
    "routeA": ("routeA", MEAN),
    "moe": ("moe", {"soft": "published", "lr": 0.05}),
}
MORE: Cases = {
    "routeV live": ("routeV", LIVE),
    "routeA live": ("routeA", LIVE),
    "erase on delta_s": ("erase", {"kind": "delta_s"}),
    "routeV tokens": ("routeV", {"kind": "delta_s", **MEAN}),
    "routeV nll": ("routeV", {"feature": "nll", "clean": "zeroed", **MEAN}),
    "routeV random_label": ("routeV", {"source": "random_label", **MEAN}),
    "routeV ramp": ("routeV", {"action": "ramp", "kind": "delta_s", "unit": "rollout", **MEAN}),
    "routeV haar": ("routeV", {"source": "haar:1", **MEAN}),
    "routeA haar": ("routeA", {"source": "haar:1", **MEAN}),
    "moe haar": ("moe", {"source": "haar:1", "lr": 0.05}),
    "moe random_label": ("moe", {"source": "random_label"}),
    "moe detached": ("moe", {"lr": 0.05}),
    "advantage_mod haar": ("advantage_mod", {"source": "haar:1"}),
    "advantage_mod rarely": ("advantage_mod", {"refresh_every": 5}),
}
TIMES = ("seconds_pairs",)
NEEDED: dict[str, set[str]] = {
    "erase": {"direction"},
    "routeV": {"direction", "gate", "of_version"},
    "routeA": {"direction", "gate"},
    "moe": {"direction", "router", "optimizer", "labels", "modules"},
    "advantage_mod": {"concept", "age"},
}
"""What each keeps; the others keep nothing."""


def through_disk(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def ahead(case: str, steps: int = 3) -> Rig:
    """The rig after so many steps; refreshes come after steps 1 and 3."""
    name, options = CASES[case] if case in CASES else MORE[case]
    r = rig(name, **options)
    for n in range(steps):
        r.step(n, step=SMALL)
    return r


def resumed(case: str, r: Rig, state: Any) -> Rig:
    """A fresh rig on a copy of the adapter and of its optimizer, with this state of the intervention."""
    name, options = CASES[case] if case in CASES else MORE[case]
    fresh = rig(name, **options)
    with torch.no_grad():
        for mine, theirs in zip(fresh.adapter.parameters(), r.adapter.parameters(), strict=True):
            mine.copy_(theirs)
    fresh.optimizer.load_state_dict(through_disk(r.optimizer.state_dict()))
    fresh.intervention.load_state_dict(state)
    return fresh


def on(r: Rig, steps: range) -> list[Any]:
    """Everything that these steps leave behind."""
    seen: list[Any] = []
    for n in steps:
        stats, grads = r.step(n, step=SMALL)
        columns = {k: v for k, v in r.intervention.stats().items() if k not in TIMES}
        seen += [grads, stats.weights, stats.scores, stats.advantages, stats.loss, columns]
        seen += [[p.detach().clone() for p in r.adapter.parameters()], copy.deepcopy(r.intervention.state_dict())]
    return seen


def round_trip(case: str, last: int) -> int:
    """Saved after `last` steps, an odd number, so that a refresh is one step away."""
    keeps = NEEDED.get((CASES | MORE)[case][0], set())
    r = ahead(case, last)
    held = r.intervention.state_dict()
    saved = through_disk(held)
    assert set(saved) == keeps, (case, set(saved))
    again = resumed(case, r, through_disk(saved))
    assert same(again.intervention.state_dict(), saved), f"{case}: what was loaded is not what was saved"
    further = range(last, last + (2 if keeps else 1))
    mine, theirs = on(r, further), on(again, further)
    for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert same(a, b), f"{case}: entry {k % 8} of step {last + k // 8} differs"
    assert same(held, saved), f"{case}: later steps have written into the state"
    assert not saved or not same(mine[7], saved), f"{case}: nothing moves, so nothing is tested"
    return len(saved)


@gate.invariant(
    "every intervention continues bit for bit from its saved state, refresh, buffers, router and optimizer included"
)
def _():
    entries = {case: round_trip(case, 1) for case in CASES}
    return f"{len(CASES)} cases, {sum(entries.values())} entries"


@gate.invariant("after 3 steps and a refresh too, and in the other forms and the placebos", slow=True)
def _():
    cases = [case for case in CASES if CASES[case][0] in NEEDED] + list(MORE)
    entries = {case: round_trip(case, 3) for case in cases}
    return f"{len(cases)} cases, {sum(entries.values())} entries"


def needed(case: str, keys: set[str]) -> dict[tuple[str, str], bool]:
    """By entry, whether what follows differs where that entry of the state is a fresh object's."""
    r = ahead(case)
    saved = through_disk(r.intervention.state_dict())
    stale = through_disk(ahead(case, 0).intervention.state_dict())
    others = {key: resumed(case, r, saved | {key: stale[key]}) for key in sorted(keys)}
    whole, found = on(r, range(3, 5)), {}
    for key, other in others.items():
        try:
            found[case, key] = not same(whole, on(other, range(3, 5)))
        except KeyError:  # no view has edges
            found[case, key] = True
    return found


@gate.invariant("every entry of a state is needed: a fresh one in its place changes what follows", slow=True)
def _():
    # Edges of tokens are read with the adapter as it was; those of rollouts come from what the direction keeps.
    # The age of a vector tells in the step after one without a refresh.
    cases = {"erase": {"direction"}, "advantage_mod": {"concept"}, "routeV tokens": NEEDED["routeV"]}
    cases["advantage_mod rarely"] = {"age"}
    cases |= {"routeV live": {"direction", "gate"}, "routeA live": NEEDED["routeA"]}
    cases["moe"] = {"direction", "router", "optimizer"}
    found = {k: v for case, keys in cases.items() for k, v in needed(case, keys).items()}
    assert all(found.values()), {k for k, differs in found.items() if not differs}
    return f"{len(found)} entries"


@gate.invariant(
    "haar labels of moe are kept, though the adapter has moved so far that a fresh object would make others"
)
def _():
    r = ahead("moe haar", 1)
    with torch.no_grad():
        for p in r.adapter.parameters():
            p += 0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p)
    labels = r.intervention.labels.clone()
    state = through_disk(r.intervention.state_dict())
    fresh = rig("moe", source="haar:1", lr=0.05)
    with torch.no_grad():
        for mine, theirs in zip(fresh.adapter.parameters(), r.adapter.parameters(), strict=True):
            mine.copy_(theirs)
    fresh.intervention.prepare(r.direction)
    others = fresh.intervention.labels.clone()
    fresh.intervention.load_state_dict(state)
    assert not torch.equal(others, labels), "a fresh object makes the same labels: the test says nothing"
    assert torch.equal(fresh.intervention.labels, labels)
    return f"{int((others != labels).sum())} of {len(labels)} would differ"


@gate.invariant("an intervention without state refuses one; a state with an entry missing does not load")
def _():
    refused = 0
    for name, cls in INTERVENTIONS.items():
        r = rig(name)
        state = r.intervention.state_dict()
        assert state.keys() == NEEDED.get(name, set()), name
        for broken in [{"x": 1}] if not state else [{k: v for k, v in state.items() if k != key} for key in state]:
            try:
                r.intervention.load_state_dict(broken)
            except (ValueError, KeyError):
                refused += 1
                continue
            raise AssertionError(f"{cls.__name__} took {sorted(broken)}")
    return f"{len(INTERVENTIONS)} interventions, {refused} broken states refused"


if __name__ == "__main__":
    gate.main()
