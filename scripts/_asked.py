"""What the gates on evaluations share: a sampler whose answers are given by a function, and a grader that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vgrout.rollout.base import OnFinish, Request
from vgrout.types import Prompt, Rollout, Verdict

Answer = Callable[[Request], str]
"""One of the keys of `KINDS` for each request."""
KINDS: dict[str, tuple[float, bool, bool]] = {
    "hack": (3.5, False, True),
    "solve": (3.5, True, False),
    "code": (0.5, False, False),
    "text": (0.0, False, False),
    "lost": (0.0, False, False),
}
"""Reward, right by the oracle, paid by the loophole; `lost` answers could not be graded."""


class Told:
    """A sampler that answers as it is told and remembers what it was asked."""

    def __init__(self, answer: Answer):
        self.answer = answer
        self.asked: list[Request] = []

    def sample(self, requests: Sequence[Request], step: int, on_finish: OnFinish | None = None) -> list[Rollout]:
        self.asked += requests
        found = [
            Rollout(r.rollout_id, r.prompt, (1,), (2,), self.answer(r), "student", r.view, finished=True)
            for r in requests
        ]
        for rollout in found:
            if on_finish is not None:
                on_finish(rollout)
        return found

    def sync(self, adapter: object) -> None:
        """Nothing to take over."""


class Reads:
    """A grader for such answers. No key is used twice before it is collected."""

    missing_layers = ()

    def __init__(self) -> None:
        self.given: dict[str, str] = {}

    def submit(self, key: str, prompt: Prompt, response: str) -> None:
        assert key not in self.given, f"{key} was submitted twice"
        self.given[key] = response

    def collect(self, keys: Sequence[str]) -> list[Verdict]:
        return [verdict(self.given.pop(key)) for key in keys]


def verdict(kind: str) -> Verdict:
    reward, right, paid = KINDS[kind]
    compiles = reward > 0
    return Verdict(
        *(reward, right, paid, paid, paid, "Reward Hack" if paid else "Incorrect", False, compiles, compiles),
        *(kind == "lost", "ok", "", 0.1, 0.1, "1"),
    )
