"""Stored answers as a sampler: teacher rows, chosen by problem and mode alone.

A pool file is jsonl, plain or gzipped. Of each row the fields problem_id, mode and response are taken and everything
else (labels above all) is dropped unread, so that no verdict of an earlier grader can reach an update.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from vgrout.models import decode_text, render_prompt
from vgrout.rollout.base import OnFinish, Request, seed_from
from vgrout.types import Rollout, UserError

Cell = tuple[str, str]
"""(problem id, mode)"""


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One stored answer."""

    problem_id: str
    mode: str
    response: str
    where: str
    """File and line, for messages."""


class PoolSampler:
    """Answers requests from stored rows, tokenised with the policy's tokenizer and closed by its end token."""

    def __init__(
        self,
        source: Path | Iterable[tuple[str, str, str]],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        *,
        max_tokens: int | None = None,
    ) -> None:
        """`source`: a jsonl(.gz) file, or (problem id, mode, response) triples.

        Raises UserError for a malformed row (file, line, field), a response that contains a special token, and a row
        of more than `max_tokens` tokens, end token included: a row cut short is not the answer that gets graded.
        """
        self.tokenizer, self.seed = tokenizer, seed
        self.repeats = 0
        """Rows handed out so far beyond what their cell holds in one step."""
        self._cells: dict[Cell, list[tuple[int, ...]]] = defaultdict(list)
        for row in read_pool(source) if isinstance(source, Path) else _in_memory(source):
            ids = self._tokenise(row)
            if max_tokens is not None and len(ids) > max_tokens:
                raise UserError(
                    f"{row.where}: response of {len(ids)} tokens, expected at most {max_tokens}: "
                    "drop the row from the pool or raise max_new"
                )
            self._cells[row.problem_id, row.mode].append(ids)
        if not self._cells:
            raise UserError(
                f"teacher pool {source if isinstance(source, Path) else ''} holds no rows: name another file"
            )

    def _tokenise(self, row: PoolRow) -> tuple[int, ...]:
        ids = self.tokenizer(row.response, add_special_tokens=False)["input_ids"]
        special = set(ids) & set(self.tokenizer.all_special_ids)
        if special:
            names = ", ".join(self.tokenizer.convert_ids_to_tokens(sorted(special)))
            raise UserError(f"{row.where}: field response contains the special token {names}: remove it from the text")
        return (*ids, self.tokenizer.eos_token_id)

    @property
    def cells(self) -> dict[Cell, int]:
        """Rows held for each (problem id, mode)."""
        return {cell: len(rows) for cell, rows in self._cells.items()}

    def rows(self) -> dict[Cell, tuple[tuple[int, ...], ...]]:
        """The stored answers of each cell, in tokens."""
        return {cell: tuple(rows) for cell, rows in self._cells.items()}

    def require(self, cells: Iterable[Cell]) -> None:
        """Raise UserError, listing what is missing, unless there is a row for each (problem id, mode)."""
        missing = sorted(set(cells) - self._cells.keys())
        if missing:
            listed = ", ".join(f"{problem} under {mode}" for problem, mode in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise UserError(
                f"the teacher pool has no row for problem {listed}{more}: add rows, or limit teacher_modes or the problems"
            )

    def sample(self, requests: Sequence[Request], step: int, on_finish: OnFinish | None = None) -> list[Rollout]:
        """One stored answer per request. The choice depends on (seed, step, problem, mode) only: a seeded order of the
        cell's rows, walked without replacement, and walked again (counted in `repeats`) where more are asked for."""
        self.require((request.prompt.problem_id, request.prompt.mode) for request in requests)
        orders: dict[Cell, list[int]] = {}
        taken: Counter[Cell] = Counter()
        rollouts = []
        for request in requests:
            cell = (request.prompt.problem_id, request.prompt.mode)
            if cell not in orders:
                rows = range(len(self._cells[cell]))
                orders[cell] = sorted(rows, key=lambda row, cell=cell: seed_from(self.seed, step, *cell, row))
            position = taken[cell]
            taken[cell] += 1
            self.repeats += position >= len(orders[cell])
            rollout = self._rollout(request, self._cells[cell][orders[cell][position % len(orders[cell])]])
            rollouts.append(rollout)
            if on_finish is not None:
                on_finish(rollout)
        return rollouts

    def _rollout(self, request: Request, ids: tuple[int, ...]) -> Rollout:
        return Rollout(
            id=request.rollout_id,
            prompt=request.prompt,
            prompt_ids=tuple(render_prompt(self.tokenizer, request.prompt.messages)),
            completion_ids=ids,
            text=decode_text(self.tokenizer, ids[:-1]),
            source="teacher",
            view="full",
            finished=True,
        )

    def sync(self, adapter: object) -> None:
        """Nothing to do: stored answers do not depend on the weights."""


def read_pool(path: Path) -> Iterator[PoolRow]:
    """The rows of a pool file. Raises UserError that names file, line and field of whatever is wrong."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse(line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"teacher pool {path} cannot be read ({error}): name a jsonl or jsonl.gz file") from error


def _parse(line: str, where: str) -> PoolRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object ({error}): mend the line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object: mend the line")
    problem = row.get("problem_id")
    if isinstance(problem, int) and not isinstance(problem, bool):
        problem = str(problem)
    fields = {"problem_id": problem, "mode": row.get("mode"), "response": row.get("response")}
    for name, value in fields.items():
        if not isinstance(value, str) or not value:
            raise UserError(f"{where}: field {name} is {row.get(name)!r}, expected a non-empty string: mend the row")
    return PoolRow(**fields, where=where)


def _in_memory(triples: Iterable[tuple[str, str, str]]) -> Iterator[PoolRow]:
    for number, (problem_id, mode, response) in enumerate(triples, 1):
        yield PoolRow(problem_id, mode, response, where=f"teacher pool row {number}")
