"""The policy itself as a sampler: transformers weights, merged for the view, and the package's own decode loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vgrout.models import decode_text, render_prompt, stop_ids
from vgrout.rollout.base import OnFinish, Progress, Request, SamplingParams, seed_from
from vgrout.rollout.decode import Completion, decode
from vgrout.types import Prompt, Rollout, View


@runtime_checkable
class Mergeable(Protocol):
    """What the sampler needs of an adapter."""

    def merged_rows(self, views: Sequence[View]) -> AbstractContextManager[Callable[[Sequence[View]], None]]:
        """Inside, each row of a batch meets the weights of its own view, as the function that is yielded was told."""
        ...


class NoAdapter:
    """Stands for the base model alone: every view is the model as it is."""

    def merged_rows(self, views: Sequence[View]) -> AbstractContextManager[Callable[[Sequence[View]], None]]:
        """Nothing to merge."""
        return nullcontext(lambda views: None)


class HFSampler:
    """Samples all requests, whatever their views, in one batch (or batches of `max_rows`) from a transformers model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapter: Mergeable,
        params: SamplingParams,
        seed: int,
        *,
        max_rows: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`max_rows` bounds the rows decoded together (memory). A row's draws depend on (seed, step, rollout id) only."""
        self.model, self.tokenizer, self.adapter = model, tokenizer, adapter
        self.params, self.seed, self.max_rows, self.progress = params, seed, max_rows, progress
        self._stop = stop_ids(model, tokenizer)

    def sample(self, requests: Sequence[Request], step: int, on_finish: OnFinish | None = None) -> list[Rollout]:
        """One rollout per request, in their order; `on_finish` sees each as soon as its last token is drawn."""
        rendered = {prompt: tuple(render_prompt(self.tokenizer, prompt.messages)) for prompt in _distinct(requests)}
        rollouts: dict[int, Rollout] = {}
        if not requests:
            return []

        def finish(row: int, completion: Completion) -> None:
            rollouts[row] = self._rollout(requests[row], rendered[requests[row].prompt], completion)
            if on_finish is not None:
                on_finish(rollouts[row])

        views = [request.view for request in requests]
        with self.adapter.merged_rows([view for view, _ in Counter(views).most_common()]) as select:
            decode(
                self.model,
                [rendered[request.prompt] for request in requests],
                [seed_from(self.seed, step, request.rollout_id) for request in requests],
                self.params,
                self._stop,
                views=views,
                select=select,
                max_rows=self.max_rows,
                on_finish=finish,
                progress=self.progress,
            )
        return [rollouts[row] for row in range(len(requests))]

    def _rollout(self, request: Request, prompt_ids: tuple[int, ...], completion: Completion) -> Rollout:
        answer = completion.ids[:-1] if completion.finished else completion.ids
        return Rollout(
            id=request.rollout_id,
            prompt=request.prompt,
            prompt_ids=prompt_ids,
            completion_ids=completion.ids,
            text=decode_text(self.tokenizer, answer),
            source="student",
            view=request.view,
            finished=completion.finished,
            sampler_logps=completion.logps,
        )

    def sync(self, adapter: object) -> None:
        """Nothing to do: weights are merged from the adapter at each call of `sample`."""


def _distinct(requests: Sequence[Request]) -> list[Prompt]:
    return list(dict.fromkeys(request.prompt for request in requests))
