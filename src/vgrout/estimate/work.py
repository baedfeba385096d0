"""What a run does, as far as its memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vgrout.estimate.shapes import Shape

Keeps = Literal["sums", "rollouts", "tokens"]
"""What the update keeps of a micro-batch's backward: sums, each rollout's gradients, each token's factors."""


@dataclass(frozen=True)
class Sampling:
    """Rows that are decoded together."""

    rows: int
    prefills: int
    """Distinct pairs of a prompt and a view among them."""
    prompt: int
    """Tokens of the longest prompt."""
    new: int
    """Tokens of a completion."""
    top_p: float
    top_k: int
    views: int = 1
    """Views among the rows."""


@dataclass(frozen=True)
class Backward:
    """Rows that are differentiated, in micro-batches."""

    rows: int
    """Of one view."""
    length: int
    """Tokens of a row, prompt included."""
    budget: int
    """Tokens of a micro-batch."""
    keeps: Keeps = "sums"
    half_copy: bool = False
    """The deployed half of what is kept per rollout is copied out (an extraction)."""

    @property
    def batch(self) -> int:
        """Rows of a micro-batch."""
        return max(1, min(self.rows, self.budget // self.length))

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.batch * self.length


@dataclass(frozen=True)
class Work:
    """What a run does, as far as memory depends on it."""

    shape: Shape
    width: int
    """Bytes of a weight and of an activation."""
    adapter: str
    rank: int
    distinct: bool
    """delta_s: the quarantine has a basis of its own."""
    cuda: bool
    sampling: Sampling
    evaluation: Sampling
    update: Backward
    observe: Literal["nothing", "activations", "hidden"]
    own_pass: bool
    """Features from a backward of their own, before the training pass."""
    pairs: Backward | None
    """Of the direction's extraction; None where the run has no direction."""
    top_k: int
    k_use: int
    chunk: int
    checkpointed: bool
    kl: bool
    sums_aside: int = 0
    """Gradients of the whole adapter that wait for a group's number."""
    teacher_copy: bool = False
    measured: bool = False
