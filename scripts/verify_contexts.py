"""Views, routes, merging and recording as contexts: which one acts, what they exclude, how they end.

Invariants:
- a view inside a route, or a route inside a view, acts alone, the base view included; without a route the masked code
  never runs;
- contexts restore on any exit; merging excludes routes and other views, by name; misfits are refused;
- merged row by row, each row is that of its own view.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from functools import cache, partial
from unittest import mock

import torch
from torch import nn

from _gate import Gate
from _models import adapted, largest, step_of
from vgrout.adapter import lora2r
from vgrout.adapter.base import Adapter
from vgrout.adapter.route import Route, constant, three_way
from vgrout.policy import Policy, make_batch
from vgrout.types import View

gate = Gate(__doc__)
ROWS = [r for r in step_of([[1.0, 0.0, 2.0, 0.5, 0.1, 0.2]]).rollouts if r.view == "full"]
N = len(ROWS)
BATCH = make_batch(ROWS, range(N), device=torch.device("cpu"))
ROUTE = Route(
    q_value=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.6]),
    q_grad=torch.tensor([1.0, 0.0, 1.0, 0.0, 0.4]),
    d_grad=torch.tensor([0.0, 1.0, 1.0, 1.0, 0.2]),
    mask="activation",
)


@cache
def stage() -> tuple[nn.Module, Adapter]:
    return adapted()


@gate.invariant("the inner one of a view and a route acts alone, base included; without a route none of this runs")
def _():
    model, adapter = stage()
    policy = Policy(model, adapter, temperature=0.8, chunk=5)
    views: tuple[View, ...] = ("full", "deploy", "base")
    with torch.no_grad(), mock.patch.object(lora2r.Lora2rLinear, "_masked_branch", side_effect=AssertionError):
        by_view = []
        for view in views:
            with adapter.view(view):
                by_view.append(policy.logps(BATCH))
    with torch.no_grad(), adapter.routed(ROUTE, BATCH.index):
        routed = policy.logps(BATCH)
        for view, expected in zip(views, by_view, strict=True):
            with adapter.view(view):
                assert torch.equal(policy.logps(BATCH), expected), f"{view} under a route is not {view}"
                with adapter.routed(ROUTE, BATCH.index):
                    assert torch.equal(policy.logps(BATCH), routed), f"a route inside {view} is not the route"
        assert torch.equal(policy.logps(BATCH), routed)
    apart = min(largest(routed, other) for other in by_view)
    assert apart > 0.05, apart
    return f"3 views, bit for bit; the route is {apart:.2f} nats from the nearest of them"


def says(action: Callable[[], object], *words: str) -> None:
    """The ValueError that `action` must raise names these."""
    try:
        action()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"accepted; expected an error about {words}")


@gate.invariant("contexts restore on any exit; merging excludes routes and other views; misfits are refused by name")
def _():
    model, adapter = stage()
    index = BATCH.index

    def enter(*contexts: Callable[[], contextlib.AbstractContextManager[None]]) -> Callable[[], None]:
        def entered() -> None:
            with contextlib.ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context())
                raise KeyError

        return entered

    def routed() -> contextlib.AbstractContextManager[None]:
        return adapter.routed(ROUTE, index)

    before = (adapter.state.view, adapter.state.masks, adapter.state.merged, adapter.state.recorder)
    for contexts in (
        (routed,),
        (lambda: adapter.view("base"), routed, lambda: adapter.view("deploy"), routed),
        (lambda: adapter.merged("deploy"), lambda: adapter.view("deploy")),
    ):
        with contextlib.suppress(KeyError):
            enter(*contexts)()
        assert (adapter.state.view, adapter.state.masks, adapter.state.merged, adapter.state.recorder) == before
    says(enter(lambda: adapter.merged("deploy"), routed), "route", "'deploy' is merged")
    says(enter(lambda: adapter.merged("deploy"), lambda: adapter.view("full")), "'full'", "'deploy' is merged")
    says(enter(routed, lambda: adapter.merged("full")), "'full'", "under a route")
    says(lambda: enter(lambda: adapter.routed(ROUTE.of([0, 1]), index))(), "2 rollouts", f"batch of {N}")
    says(lambda: enter(lambda: adapter.routed(constant(N, deployed=1.0, quarantine=1.0), index))(), "resolve")
    assert (adapter.state.view, adapter.state.masks, adapter.state.merged, adapter.state.recorder) == before
    with adapter.routed(ROUTE, index):
        says(lambda: model(input_ids=torch.zeros(1, 2, dtype=torch.long)), "(1, 2)", "q_proj")
    hack = torch.tensor([True, False])
    says(lambda: three_way(hack, ~hack, mask="activation"), "views")
    return "3 nests left by an exception; 7 refusals by name"


def entered(context: Callable[[], contextlib.AbstractContextManager]) -> Callable[[], None]:
    def act() -> None:
        with context():
            pass

    return act


@gate.invariant("merged row by row, each row is that of its own view; no other merge or view acts meanwhile")
def _():
    model, adapter = adapted(double=False)
    tokens = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))
    views: tuple[View, ...] = ("full", "deploy", "base")
    worst = 0.0
    with torch.no_grad():
        for merged, view in itertools.permutations(views, 2):
            of_rows: tuple[View, ...] = (merged, view, merged)
            with adapter.merged_rows([merged, view]) as select:
                select(of_rows)
                rows = model(input_ids=tokens, use_cache=False).logits
                says(entered(partial(adapter.merged, "full")), "row by row")
                says(entered(partial(adapter.view, merged)), "is merged")
            for row, of in enumerate(of_rows):
                with adapter.view(of):
                    worst = max(worst, largest(model(input_ids=tokens, use_cache=False).logits[row], rows[row]))
    with contextlib.suppress(KeyError), adapter.merged_rows(["full", "deploy"]) as select:
        select(["deploy", "full", "full"])
        raise KeyError
    assert not adapter.state.shares and not any(module.differences for module in adapter.modules)
    with adapter.merged_rows(["full", "deploy"]) as select:
        unnamed: list[View] = ["base"]
        says(partial(select, unnamed), "base")
    assert worst < 1e-4, worst
    return f"6 pairs of views within {worst:.1e}"


if __name__ == "__main__":
    gate.main()
