"""The ways to ask a grader: one response, many in order, a stream with back-pressure, each also from a coroutine."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future

from vgrout.types import Prompt, UserError, Verdict

WINDOW = 1024
"""Responses of a stream that are graded or wait ahead of the verdict that is asked for."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Items = Iterable[tuple[Prompt, str]]
"""Prompts, and a response to each."""


class Batches(ABC):
    """What a grader offers on top of starting one grade."""

    @abstractmethod
    def start(self, prompt: Prompt, response: str) -> Future[Verdict]:
        """The verdict to come; UserError for an unknown problem or mode, or a closed grader."""

    def grade(self, prompt: Prompt, response: str) -> Verdict:
        """The verdict on one response; waits for it."""
        return finished(self.start(prompt, response))

    def grade_many(self, items: Items, progress: Progress | None = None) -> list[Verdict]:
        """The verdicts on (prompt, response) pairs, in their order; waits for them."""
        futures = [self.start(prompt, response) for prompt, response in items]
        verdicts = []
        for done, future in enumerate(futures, 1):
            verdicts.append(finished(future))
            if progress is not None:
                progress(done, len(futures))
        return verdicts

    def stream(self, items: Items, window: int = WINDOW) -> Iterator[Verdict]:
        """The verdicts in the items' order, as they come; items are taken only `window` ahead of them."""
        waiting: deque[Future[Verdict]] = deque()
        for prompt, response in items:
            waiting.append(self.start(prompt, response))
            if len(waiting) >= window:
                yield finished(waiting.popleft())
        while waiting:
            yield finished(waiting.popleft())

    async def grade_async(self, prompt: Prompt, response: str) -> Verdict:
        """The verdict on one response. The event loop goes on meanwhile; a cancelled call leaves the grade to others."""
        future = self.start(prompt, response)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError as error:
            if future.cancelled():
                raise UserError(CLOSED) from error
            raise

    async def stream_async(self, items: Items, window: int = WINDOW) -> AsyncIterator[Verdict]:
        """`stream` for a coroutine: `async for verdict in grader.stream_async(items)`."""
        waiting: deque[asyncio.Future[Verdict]] = deque()
        for prompt, response in items:
            waiting.append(asyncio.ensure_future(self.grade_async(prompt, response)))
            if len(waiting) >= window:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()


CLOSED = "the grader was closed before it finished"


def finished(future: Future[Verdict]) -> Verdict:
    """The verdict; waits for it. UserError where the grader was closed first."""
    try:
        return future.result()
    except CancelledError as error:
        raise UserError(CLOSED) from error
