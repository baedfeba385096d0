"""Where the time of a step goes: one clock whose seconds the phases share out among themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

PHASES = {
    "generate": "merging the weights and sampling",
    "reference": "log-probabilities without gradient: of the reference, and again of rows whose forward the route changes",
    "gate": "what the intervention reads of the step, and what it decides",
    "fwd+bwd": "forward and backward of the loss",
    "optimize": "norms, clipping, AdamW, decay; measuring along a frozen direction",
    "other": "tokenising, decoding, rewards and metrics of TRL; the systems here have none",
}
"""Name and meaning of the phases that make up a step."""
PAIRS = "pairs"
"""Passes over the contrastive pairs, which are reported apart: no part of a step."""


def clock(device: torch.device | str) -> float:
    """CPU seconds of this process; on a GPU wall seconds once it has finished what was queued."""
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Phases:
    """Seconds by phase. An inner phase takes its seconds away from the one around it, so that none counts twice."""

    def __init__(self, now: Callable[[], float]):
        self._now = now
        self._open: list[str] = []
        self._since = 0.0
        self.clear()

    def clear(self) -> None:
        assert not self._open, f"cleared inside {self._open}"
        self.seconds = dict.fromkeys((*PHASES, PAIRS), 0.0)

    @property
    def step(self) -> float:
        """Seconds of the step, passes over the pairs left out."""
        return sum(self.seconds[name] for name in PHASES)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """The time inside the block, but for that of phases inside it, is added to `name`."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = self._now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def watch(self, owner: Any, attribute: str, name: str, *, without_gradient: bool = False) -> None:
        """From now on calls of `owner.attribute` are timed as the phase `name`."""
        setattr(owner, attribute, self._timed(getattr(owner, attribute), name, without_gradient))

    def watching(self, owner: Any, attribute: str, name: str) -> Any:
        """The same while the block runs, for owners that other systems share (a module, a class)."""
        return mock.patch.object(owner, attribute, self._timed(getattr(owner, attribute), name, False))

    def _timed(self, act: Callable[..., Any], name: str, without_gradient: bool) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if without_gradient and torch.is_grad_enabled():
                return act(*args, **kwargs)
            with self.phase(name):
                return act(*args, **kwargs)

        return timed
