"""The ways to ask a grader: one response, many in order, a stream with back-pressure, each also from a coroutine."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

from vgrout.types import Prompt, UserError, Verdict

WINDOW = 1024
"""Responses of a stream that are graded or wait ahead of the verdict that is asked for."""
WINDOW_CHARACTERS = 1 << 26
"""The same in characters, one response more at most: long responses are taken less far ahead."""

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
        waiting: _Ahead[Future[Verdict]] = _Ahead(window)
        for prompt, response in items:
            waiting.add(self.start(prompt, response), response)
            while waiting.full():
                yield finished(waiting.first())
        while waiting:
            yield finished(waiting.first())

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
        waiting: _Ahead[asyncio.Future[Verdict]] = _Ahead(window)
        for prompt, response in items:
            waiting.add(asyncio.ensure_future(self.grade_async(prompt, response)), response)
            while waiting.full():
                yield await waiting.first()
        while waiting:
            yield await waiting.first()


T = TypeVar("T")


class _Ahead(Generic[T]):
    """What a stream has taken and not yet given, with the length of each response."""

    def __init__(self, window: int):
        self.window = window
        self.items: deque[tuple[T, int]] = deque()
        self.characters = 0

    def __len__(self) -> int:
        return len(self.items)

    def add(self, item: T, response: str) -> None:
        self.items.append((item, len(response)))
        self.characters += len(response)

    def full(self) -> bool:
        """Whether one must be given before another is taken."""
        return len(self.items) >= self.window or (len(self.items) > 0 and self.characters > WINDOW_CHARACTERS)

    def first(self) -> T:
        """The oldest, taken out."""
        item, length = self.items.popleft()
        self.characters -= length
        return item


CLOSED = "the grader was closed before it finished"


def finished(future: Future[Verdict]) -> Verdict:
    """The verdict; waits for it. UserError where the grader was closed first."""
    try:
        return future.result()
    except CancelledError as error:
        raise UserError(CLOSED) from error
