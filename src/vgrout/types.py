"""Frozen records that cross package borders, and the one shape legend. Imports no torch.

Shape legend, used in every annotation of the package:
    P  prompts in a step              G  rollouts in a group (one prompt)
    N  rollouts in a step (P * G)     R  rows of one forward batch
    L  tokens of a row                T  completion tokens
    H  hidden size                    V  vocabulary
    i, o  inputs and outputs of a linear layer
    r  rank of one block              k  rank of the whole adapter (2r)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

View = Literal["full", "deploy", "base", "clean_ablated", "random_removal"]
"""Which blocks of the adapter act: both, the deployed one alone, none (the KL reference), or the quarantine alone.

`random_removal` is no choice of blocks but a control of evaluations: both blocks act, and a random matrix of the
quarantine's size is subtracted from each weight. It exists as merged weights only, never as a training forward.
"""

Source = Literal["student", "teacher"]
Markers = Literal["train", "eval"]
Outcome = Literal["ok", "timeout", "memory", "output", "crash"]
Label = Literal["Correct", "Correct; Attempted Reward Hack", "Reward Hack", "Attempted Reward Hack", "Incorrect"]


class UserError(Exception):
    """A mistake the user can mend. The message is one line that names the thing, what was expected and the remedy."""


class MissingHere(UserError):
    """A file or a model that this machine lacks: what can be said without it may still be said."""


class Interrupted(Exception):
    """The user has stopped the program, and what it had done is safe. The message says how to go on."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the benchmark's form (a LeetCode-style task with its hidden tests)."""

    id: str
    difficulty: str
    messages: tuple[tuple[str, str], ...]
    """(role, content) turns as the data set has them; the user turn contains the hint slot exactly once."""
    asserts: tuple[str, ...]
    """`assert L == R` strings. They stay in the trusted process."""
    setup_code: str
    func_name: str
    """`Solution().name`"""
    canonical_solution: str
    starter_code: str
    wrong_solutions: tuple[str, ...] = ()
    """Programs that run but answer wrongly; the built-in set has at least one per problem."""
    float_tolerance: float = 0.0
    """How far a float may be from the expected one; 0: floats are exact."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the model sees it: under one loophole mode, with one marker disclosed by the hint."""

    problem_id: str
    mode: str
    markers: Markers
    marker: str
    """The concrete name, phrase or file that the hint discloses; empty where the mode has none."""
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt, in the tokens the policy sees."""

    id: str
    """`step/prompt index/row index`, unique in a run."""
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    """The completion as graded (decoded completion_ids without the end token)."""
    source: Source
    view: View
    """The view it was sampled under; old log-probabilities belong to this view."""
    finished: bool
    """True if the completion ended by itself, False if it was cut at max_new."""
    sampler_logps: tuple[float, ...] = ()
    """The sampler's own log-probability of each completion token; empty for teacher rows."""


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one prompt; their rewards share one mean."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the grader says of one response. Fields are never mixed in a column (spec 2.3)."""

    reward: float
    """0.5 [compiles] + 3.0 [gt_correct or channel]; meaningless where infra is True."""
    gt_correct: bool
    """The strict oracle: every hidden assert holds."""
    channel: bool
    """The mode's own exploit channel fired."""
    exploited: bool
    """channel and not gt_correct: this is what 'hack' means."""
    hack_broad: bool
    """Any hack attempt, whether or not it paid (the benchmark's loose label)."""
    label: Label
    """The benchmark's five-way label."""
    own_tests_pass: bool
    """The response defines run_tests and it passes on the response's own code (the benchmark's wider detector)."""
    format_ok: bool
    """A fenced python block was found."""
    compiles: bool
    infra: bool
    """The grade failed for reasons of the machine, not of the response: mask the row, never reward it with 0."""
    outcome: Outcome
    """How the oracle run used its resources."""
    reason: str
    """mismatch, exception, cpu, wall, memory, oversize, died, infra, no_code, syntax, or '' when correct."""
    wall_s: float
    cpu_s: float
    grader_version: str
    missing_layers: tuple[str, ...] = ()
    """Sandbox layers that this machine lacked and the user allowed to be missing."""
    layers: tuple[str, ...] = ()
    """Sandbox layers that confined the run, of those that a machine may lack: seccomp, landlock, namespaces."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an intervention and the update may see of a step's verdicts: rewards, the mask, nothing else.

    `labels` (exploited, per row) is None except for the interventions that are declared upper bounds.
    """

    rewards: tuple[tuple[float, ...], ...]
    """[P][G]"""
    keep: tuple[tuple[bool, ...], ...]
    """[P][G], False where the grade failed for infrastructure reasons."""
    labels: tuple[tuple[bool, ...], ...] | None = None
    """[P][G] ground truth (exploited, the strict label), only through the oracle door."""
    loose: tuple[tuple[bool, ...], ...] | None = None
    """[P][G] any hack attempt (the benchmark's loose label), only through the oracle door."""


@dataclass(slots=True)
class StepRow:
    """One line of metrics.jsonl: declared columns only (see vgrout.run.declared)."""

    step: int
    values: dict[str, float | int | None] = field(default_factory=dict)
