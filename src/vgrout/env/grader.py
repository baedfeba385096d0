"""The grader: responses in, verdicts out, over all cores, cached by content.

    problems = load_problems("problems.jsonl")
    prompt = render(problems[0], mode="run_tests", markers="train", seed=0)
    with Grader(problems) as grader:
        verdict = grader.grade(prompt, "```python\\nclass Solution: ...\\n```")
        print(verdict.reward, verdict.gt_correct, verdict.channel, verdict.label)

`submit` and `collect` do the same without waiting; `grade_many`, `stream` and their twins for coroutines take many at
once (see `batches`). Each worker is a thread of this process that drives a fork-server of
its own; expected values stay here, candidate code runs there (see `sandbox`, `oracle`, `channels`).
"""

from __future__ import annotations

import atexit
import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from vgrout.cores import usable_cores
from vgrout.env import hiding, sandbox, selftest
from vgrout.env.asserts import Tests, parse_tests
from vgrout.env.batches import Batches, Progress, finished
from vgrout.env.labels import GRADER_VERSION as GRADER_VERSION
from vgrout.env.labels import extract_program
from vgrout.env.layers import missing_layers, require_namespaces
from vgrout.env.modes import mode_named
from vgrout.env.runner import Runner, Unmeasured
from vgrout.env.scratch import ScratchRoot
from vgrout.env.store import VerdictStore, content_key, problem_key
from vgrout.env.watch import InfraError
from vgrout.types import Problem, Prompt, UserError, Verdict

CPU_LIMITS = (2, 4, 8, 16, 20)
"""CPU seconds that a problem may be given."""
CPU_MARGIN = 8
"""A candidate gets this many times the CPU of the canonical solution."""
CACHE_SIZE = 1 << 16

Job = tuple[Future[Any], Callable[[Runner], Any]]


class Grader(Batches):
    """A pool of sandboxed workers for a set of problems; a context manager."""

    def __init__(
        self,
        problems: Iterable[Problem],
        *,
        workers: int | None = None,
        allow_missing: tuple[str, ...] = (),
        cpu_limits: Mapping[str, float] | None = None,
        limits: sandbox.Limits = sandbox.DEFAULT_LIMITS,
        namespaces: bool = False,
        store: VerdictStore | None = None,
    ):
        """`workers`: all cores by default. `cpu_limits`: seconds by problem id, as `measure_limits` returned them; what
        is not given is measured when it is first needed. `limits`: everything but the CPU. `namespaces`: wrap each
        fork-server in namespaces of its own, one layer more where the machine allows it. `store`: verdicts that outlive
        the grader, its owner closes it.

        Until `close` the calling process is not dumpable: it holds expected values (see `hiding`).

        Raises UserError where a sandbox layer is missing that is not named in `allow_missing`, or fails its self-test.
        """
        self.problems = {problem.id: problem for problem in problems}
        self.missing_layers = missing_layers(allow_missing)
        if namespaces:
            require_namespaces()
        self.cpu_limits = dict(cpu_limits or {})
        self.limits = limits
        self.store = store
        self.cache_hits = 0
        """Grades that were not needed because their content was known, here or in the store."""
        self._lock = threading.Lock()
        self._tests: dict[str, Tests] = {}
        self._keys: dict[str, str] = {}
        self._measuring: dict[str, Future[float]] = {}
        self._cache: OrderedDict[bytes, Future[Verdict]] = OrderedDict()
        self._submitted: dict[str, Future[Verdict]] = {}
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._folder = ScratchRoot()
        count = workers or usable_cores()
        landlock = "landlock" not in self.missing_layers
        self._runners = [Runner(self._folder.path, landlock=landlock, namespaces=namespaces) for _ in range(count)]
        self.layers = self._runners[0].layers
        self._threads: list[threading.Thread] = []
        self._closed = False
        hiding.hide_process()
        atexit.register(self.close)
        try:
            selftest.require_containment(self._runners[0])
        except InfraError as error:
            self.close()
            raise UserError(f"the grader's sandbox does not start: {error}") from error
        except BaseException:
            self.close()
            raise
        self._threads = [threading.Thread(target=self._work, args=(r,), daemon=True) for r in self._runners]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what was submitted and not collected is dropped."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        while not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                job[0].cancel()
        for runner in self._runners:
            runner.abort()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for runner in self._runners:
            runner.close()
        self._folder.remove()
        hiding.show_process()

    # ---- grading --------------------------------------------------------------------------------------------------

    def start(self, prompt: Prompt, response: str) -> Future[Verdict]:
        """The verdict to come, shared by all who ask for the same content; UserError as `submit`."""
        if self._closed:
            raise UserError("the grader is closed; make a new one")
        if prompt.problem_id not in self.problems:
            raise UserError(f"problem {prompt.problem_id}: not among the {len(self.problems)} problems of this grader")
        mode_named(prompt.mode)
        return self._verdict(prompt, response)

    def submit(self, key: str, prompt: Prompt, response: str) -> None:
        """Start grading; `collect` gives the verdict under `key`. UserError for an unknown problem, mode or a used key."""
        if key in self._submitted:
            raise UserError(f"grade key {key!r}: already submitted and not collected; use each key once")
        self._submitted[key] = self.start(prompt, response)

    def collect(self, keys: Sequence[str]) -> list[Verdict]:
        """The verdicts of what was submitted under these keys, in their order; waits for them."""
        unknown = [key for key in keys if key not in self._submitted]
        if unknown:
            raise UserError(f"grade key {unknown[0]!r}: nothing was submitted under it")
        return [finished(self._submitted.pop(key)) for key in keys]

    def measure_limits(
        self, problem_ids: Sequence[str] | None = None, progress: Progress | None = None
    ) -> dict[str, float]:
        """CPU limit by problem id (of all problems by default), measured where not yet known.

        8 times the CPU of the canonical solution, rounded up to 2, 4, 8, 16 or 20 seconds. Raises UserError naming the
        problems whose canonical solution fails the oracle.
        """
        ids = list(self.problems if problem_ids is None else problem_ids)
        if failures := list(self.failing_solutions(ids, progress).values()):
            more = f" (and {len(failures) - 3} more)" if len(failures) > 3 else ""
            raise UserError("; ".join(failures[:3]) + more)
        return {problem_id: self._limit(problem_id).result() for problem_id in ids}

    def failing_solutions(self, problem_ids: Sequence[str], progress: Progress | None = None) -> dict[str, str]:
        """Of which of these problems the canonical solution fails the oracle, and why; measures the limits of the others."""
        waiting, failures = {problem_id: self._limit(problem_id) for problem_id in problem_ids}, {}
        for done, (problem_id, future) in enumerate(waiting.items(), 1):
            try:
                future.result()
            except UserError as error:
                failures[problem_id] = str(error)
            if progress is not None:
                progress(done, len(waiting))
        return failures

    # ---- jobs -----------------------------------------------------------------------------------------------------

    def _work(self, runner: Runner) -> None:
        with suppress(InfraError):  # met again, tried again and reported with the first job
            runner.start()
        while (job := self._jobs.get()) is not None:
            future, compute = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(compute(runner))
            except BaseException as error:  # noqa: BLE001 - raised again where the result is collected
                future.set_exception(error)

    def _verdict(self, prompt: Prompt, response: str) -> Future[Verdict]:
        content = self._content(prompt, response)
        with self._lock:
            known = self._cache.get(content)
            if known is not None and not _went_wrong(known):
                self._cache.move_to_end(content)
                self.cache_hits += 1
                return known
            future: Future[Verdict] = Future()
            self._cache[content] = future
            while len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        limit = self._limit(prompt.problem_id)
        # The limit was queued before, so it is known or being measured when a worker waits for it here.
        self._jobs.put((future, lambda runner: self._grade(runner, prompt, response, limit, content)))
        return future

    def _grade(self, runner: Runner, prompt: Prompt, response: str, limit: Future[float], content: bytes) -> Verdict:
        try:
            limits = self.limits.with_cpu(math.ceil(limit.result()))
        except Unmeasured:
            return runner.ungraded(response)
        key = content_key(content.hex(), repr(limits), *self.layers)
        if self.store is not None and (known := self.store.get(key)) is not None:
            with self._lock:
                self.cache_hits += 1
            return known
        verdict = runner.grade(prompt, response, self._tests_of(prompt.problem_id), limits)
        if self.store is not None:
            self.store.put(key, verdict)
        return verdict

    def _limit(self, problem_id: str) -> Future[float]:
        """The problem's CPU limit to come."""
        with self._lock:
            known = self._measuring.get(problem_id)
            if known is None or _unmeasured(known):
                future = self._measuring[problem_id] = Future()
                if problem_id in self.cpu_limits:
                    future.set_result(self.cpu_limits[problem_id])
                else:
                    self._jobs.put((future, lambda runner: self._measure(runner, problem_id)))
            return self._measuring[problem_id]

    def _measure(self, runner: Runner, problem_id: str) -> float:
        problem = self.problems[problem_id]
        if self.store is not None and (known := self.store.cpu_limit(problem)) is not None:
            self.cpu_limits[problem_id] = known
            return known
        limits, program = self.limits.with_cpu(CPU_LIMITS[-1]), problem.canonical_solution
        try:
            result = runner.retried(lambda: runner.oracle(program, self._tests_of(problem_id), limits))
        except InfraError as error:
            raise Unmeasured(
                f"problem {problem_id}: its canonical solution could not be run: {error}; "
                "free memory, processes and disk space, then try again"
            ) from error
        if not result.correct:
            raise UserError(
                f"problem {problem_id}: its canonical solution fails the oracle "
                f"({result.detail or result.reason}, {result.cpu_s:.1f} s CPU)"
                "; correct the row"
            )
        limit = float(next((c for c in CPU_LIMITS if c >= CPU_MARGIN * result.cpu_s), CPU_LIMITS[-1]))
        self.cpu_limits[problem_id] = limit
        if self.store is not None:
            self.store.put_cpu_limit(problem, limit)
        return limit

    def _tests_of(self, problem_id: str) -> Tests:
        if (tests := self._tests.get(problem_id)) is None:
            tests = self._tests[problem_id] = parse_tests(self.problems[problem_id])
        return tests

    def _content(self, prompt: Prompt, response: str) -> bytes:
        """What the verdict depends on besides the limits and the layers."""
        problem_id = prompt.problem_id
        if (problem := self._keys.get(problem_id)) is None:
            problem = self._keys[problem_id] = problem_key(self.problems[problem_id])
        return content_key(problem, prompt.mode, prompt.markers, extract_program(response))


def _went_wrong(future: Future[Verdict]) -> bool:
    """Whether a cached grade is not worth keeping: it raised, or the machine failed."""
    return future.done() and (future.exception() is not None or future.result().infra)


def _unmeasured(limit: Future[float]) -> bool:
    """Whether a measurement has failed for reasons of the machine, so that another may succeed."""
    return limit.done() and not limit.cancelled() and isinstance(limit.exception(), Unmeasured)
