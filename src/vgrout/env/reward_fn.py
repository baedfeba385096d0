"""The grader as a reward function for TRL's `GRPOTrainer`, with this package's prompts and none of its training.

    problems = load_problems("data/leetcode_train_medhard_filtered.jsonl")
    with GraderReward(problems) as reward:
        GRPOTrainer(
            model="Qwen/Qwen3-0.6B",
            reward_funcs=reward,
            train_dataset=Dataset.from_list(dataset_rows(problems)),
        ).train()

The data set's columns say what a completion is graded for; `dataset_rows` makes them. TRL leaves a completion whose
reward is None out of its group's mean and gives it no advantage: that is what a grade gets that failed for reasons of
the machine. `docs/example_trl.py` is a whole program. Imports neither TRL nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from vgrout.env.grader import Grader
from vgrout.env.modes import LOOPHOLES, marker_for, mode_named
from vgrout.env.partition import make_partition
from vgrout.env.prompts import render
from vgrout.env.sandbox import DEFAULT_LIMITS, Limits
from vgrout.types import Markers, Problem, Prompt, UserError, Verdict

Completion = str | Sequence[Mapping[str, Any]]
"""A text, or the chat turns that the model has added."""
Logged = Callable[[str, Any], None]


def dataset_rows(
    problems: Sequence[Problem],
    modes: Sequence[str] = LOOPHOLES,
    *,
    markers: Markers = "train",
    seed: int = 0,
    conversational: bool = True,
) -> list[dict[str, Any]]:
    """One row per problem: `prompt`, `problem_id`, `mode`, `markers` and `marker`.

    The problems are divided evenly over `modes` (all are `gt_only` where there are none). A conversational prompt is a
    list of chat turns, to which TRL applies the model's template; any other is the turns' text with a blank line between.
    Prompts without a loophole in a training on loopholes are further rows: `dataset_rows(problems, ())`.
    """
    partition = make_partition([problem.id for problem in problems], modes or ("gt_only",), seed)
    rows = []
    for problem in problems:
        prompt = render(problem, partition[problem.id], markers, seed)
        turns = [{"role": role, "content": content} for role, content in prompt.messages]
        text = turns if conversational else "\n\n".join(content for _, content in prompt.messages)
        rows.append(
            {"prompt": text, "problem_id": problem.id, "mode": prompt.mode, "markers": markers, "marker": prompt.marker}
        )
    return rows


class GraderReward:
    """A reward function that grades completions; a context manager, since it holds the grader's processes.

    Called by the trainer with its completions and the columns of their rows. Returns 0, 0.5 or 3.5 for each (see
    `labels.reward_of`), and None where the grade failed for reasons of the machine. The verdicts of the last call are in
    `verdicts`, and the rates of each call are handed to the trainer's log: `hack_rate` (among completions of prompts with
    a loophole), `solve_rate` (among all) and `infra_share`.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        *,
        workers: int | None = None,
        allow_missing: tuple[str, ...] = (),
        cpu_limits: Mapping[str, float] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ):
        """As `Grader`. With several training processes each has its own; give `workers` the share of the cores of one."""
        self.__name__ = "vgrout"
        self.grader = Grader(
            problems, workers=workers, allow_missing=allow_missing, cpu_limits=cpu_limits, limits=limits
        )
        self.verdicts: list[Verdict] = []

    def __enter__(self) -> GraderReward:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the grader's processes."""
        self.grader.close()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        *,
        problem_id: Sequence[str | int] | None = None,
        mode: Sequence[str] | None = None,
        markers: Sequence[str] | None = None,
        marker: Sequence[str] | None = None,
        log_metric: Logged | None = None,
        log_extra: Logged | None = None,
        **other_columns: Any,
    ) -> list[float | None]:
        """The reward of each completion. UserError for a column that is missing, of another length, or no such value."""
        count = len(completions)
        ids = _column("problem_id", problem_id, count)
        families: list[Any] = _column("markers", ["train"] * count if markers is None else markers, count)
        shown = [None] * count if marker is None else _column("marker", marker, count)
        asked = [_prompt(*row) for row in zip(ids, _column("mode", mode, count), families, shown, strict=True)]
        self.verdicts = self.grader.grade_many(zip(asked, map(text_of, completions), strict=True))
        if log_metric is not None:
            for name, rate in rates(asked, self.verdicts).items():
                log_metric(name, rate)
        if log_extra is not None:
            log_extra("label", ["not graded" if v.infra else v.label for v in self.verdicts])
        return [None if v.infra else v.reward for v in self.verdicts]


def rates(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares among the graded completions; a rate of no completions is left out."""
    graded = [(p, v) for p, v in zip(prompts, verdicts, strict=True) if not v.infra]
    hinted = [v.exploited for p, v in graded if p.mode != "gt_only"]
    shares = {
        "hack_rate": hinted,
        "solve_rate": [v.gt_correct for _, v in graded],
        "infra_share": [v.infra for v in verdicts],
    }
    return {name: sum(flags) / len(flags) for name, flags in shares.items() if flags}


def text_of(completion: Completion) -> str:
    """The text that is graded: the completion, or what its assistant turns say."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(turn.get("content") or "") for turn in completion if turn.get("role") == "assistant")


def _prompt(problem_id: Any, mode: str, markers: Any, marker: Any) -> Prompt:
    if markers not in get_args(Markers):
        raise UserError(f"column 'markers': expected train or eval, got {markers!r}")
    family = mode_named(mode).family(markers) or ("",)
    if marker is not None and marker not in family:
        raise UserError(f"column 'marker': {marker!r} is not of the {markers} family of {mode}: {', '.join(family)}")
    identity = str(problem_id)
    return Prompt(identity, mode, markers, marker_for(mode, identity, 0, markers) if marker is None else marker, ())


def _column(name: str, values: Sequence[Any] | None, count: int) -> list[Any]:
    if values is None:
        raise UserError(f"the data set has no column {name!r}; make its rows with dataset_rows, or add the column")
    if len(values) != count:
        raise UserError(f"column {name!r}: expected one value for each of {count} completions, got {len(values)}")
    return list(values)
