"""One run of a child, watched from the trusted side: its lines and output are read, and it is ended when it must be.

What a child may cost is enforced from outside as well: it is killed through its pidfd when the caller has read enough,
when a line or its output is too long, when it fills its folder, when it has used what CPU time the caller still allowed
it after some line, or when the wall backstop passes. The backstop counts wall time minus the time that the child waited
for a core (the kernel's own count), so a loaded machine changes nothing. A virtual machine may stand still and count that
as the child's time; its watcher then wakes late (`Exit.late_s`).
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from vgrout.env.descriptors import Descriptors
from vgrout.env.sandbox import Limits
from vgrout.env.scratch import folder_is_over
from vgrout.env.server import ENDED, FAILED, MESSAGE

START_S, REAP_S = 60.0, 60.0
END_S = 1.0
"""A child that has closed its ends is dying, which may take long on a busy machine, or it closed them itself, can say
nothing more and has this long to end."""
FOLDER_CHECK_S, WAKE_S = 0.02, 0.25  # how often the watcher wakes at least, with a scratch folder and without
_CHUNK = 1 << 18
_LINE_SLACK = 64
_PF_EXITING = 4
"""Of the flags in /proc/PID/stat: the kernel is taking the process apart (proc_pid_stat(5))."""
_CPUCLOCK_SCHED = 2
"""With a process id in the upper bits the clock of that process' CPU time (clock_getcpuclockid(3))."""

Killed = Literal["", "caller", "wall", "line", "stdout", "folder", "allowance", "silent"]


class InfraError(Exception):
    """The machine failed, not the candidate: server gone, fork refused, descriptors or memory exhausted."""


@dataclass(frozen=True)
class Exit:
    """How a child ended."""

    status: int
    """As of wait(2)."""
    cpu_s: float
    wall_s: float
    killed: Killed
    """Why the parent killed it; "" where it ended by itself."""
    stdout: bytes
    late_s: float = 0.0  # how late the watcher woke, in all


class Child:
    """One run of one request by one fork-server."""

    def __init__(
        self,
        control: socket.socket,
        receive: Callable[[], tuple[bytes, list[int]]],
        fds: Descriptors,
        limits: Limits,
        on_line: Callable[[bytes], bool],
        allowance: Callable[[], float | None],
    ):
        """`control`: the socket of the fork-server; `receive`: its next message, with the descriptors that came along."""
        self.control, self.receive, self.fds, self.limits = control, receive, fds, limits
        self.on_line, self.allowance = on_line, allowance
        self.cpu_end: float | None = None
        """CPU seconds of the child at which its allowance is used up, once it has one."""
        self.pending = bytearray()
        self.printed = bytearray()
        self.killed: Killed = ""
        self.late_s = 0.0
        self.pid, self.pidfd = 0, -1
        """Known of a child that has been running for a moment."""
        self.end: tuple[int, float] | None = None
        """Wait status and CPU seconds of a child that has been reaped."""

    def run(self, request: bytes, prelude: tuple[str, ...], stdout: bool, scratch: Path | None) -> Exit:
        start = time.monotonic()
        self._start(request, prelude, stdout, scratch)
        self.control.settimeout(START_S)
        self._learn()
        self._watch(time.monotonic(), scratch)
        if self.end is None:
            if not self.killed and not select.select([self.pidfd], [], [], END_S)[0] and not self._is_ending():
                self._kill("silent")
            self.control.settimeout(REAP_S)
            self._learn()
        if self.end is None:
            raise InfraError("the fork-server says twice that a child has started")
        status, cpu_s = self.end
        wall = time.monotonic() - start
        self._drain_output()
        return Exit(status, cpu_s, wall, self.killed, bytes(self.printed), self.late_s)

    def _start(self, request: bytes, prelude: tuple[str, ...], stdout: bool, scratch: Path | None) -> None:
        """Open the run's descriptors and hand the child's ends over."""
        sent = {"request": os.memfd_create("request")}
        self.fds.add(sent["request"])
        view = memoryview(request)
        while view:
            view = view[os.write(sent["request"], view) :]
        self.result, sent["result"] = os.pipe()
        self.fds.add(self.result, sent["result"])
        self.stdout = -1
        if stdout:
            self.stdout, sent["stdout"] = os.pipe()
            self.fds.add(self.stdout, sent["stdout"])
        if scratch is not None:
            sent["scratch"] = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self.fds.add(sent["scratch"])
        text = _job_text(self.limits, tuple(sent), prelude)
        socket.send_fds(self.control, [text], list(sent.values()))
        for fd in sent.values():
            self.fds.close(fd)

    def _learn(self) -> None:
        """Take what the server says next: that the child has been running for a moment, or that it has ended."""
        data, received = self.receive()
        self.fds.add(*received)
        kind, number, cpu_s = MESSAGE.unpack(data)
        if kind == FAILED:
            raise InfraError(f"the fork-server could not fork: {os.strerror(number)}")
        if kind == ENDED:
            self.end = number, cpu_s
        else:
            (self.pidfd,) = received
            self.pid = _pid_here(self.pidfd) or number

    def _watch(self, start: float, scratch: Path | None) -> None:
        """Read what the child reports and prints until it has closed both, or has been killed."""
        poll = select.poll()
        for fd in {self.result, self.stdout} - {-1}:
            poll.register(fd, select.POLLIN)
        open_ends = {self.result, self.stdout} - {-1}
        deadline = start + self.limits.wall_s
        while open_ends and not self.killed:
            asked = time.monotonic()
            wait = max(0.0, min(deadline - asked, self._cpu_left(), WAKE_S if scratch is None else FOLDER_CHECK_S))
            events = poll.poll(wait * 1000)
            self.late_s += max(0.0, time.monotonic() - asked - wait)
            for fd, _ in events:
                data = os.read(fd, _CHUNK)
                if not data:
                    poll.unregister(fd)
                    open_ends.discard(fd)
                elif fd == self.result:
                    self._take_lines(data)
                else:
                    self._take_output(data)
            if self._cpu_left() <= 0:
                self._kill("allowance")
            if scratch is not None and folder_is_over(scratch, self.limits):
                self._kill("folder")
            if time.monotonic() >= deadline:
                allowance = start + self.limits.wall_s + self._waited_for_core()
                if time.monotonic() >= allowance:
                    if self._state()[:1] == ["T"]:
                        raise InfraError("the child was stopped from outside")  # it can send no signal
                    self._kill("wall")
                deadline = max(allowance, deadline + 0.1)

    def _drain_output(self) -> None:
        """Take what the ended child had printed and nobody had read: its last report may be read before its output."""
        while self.stdout >= 0 and self.killed != "stdout" and (data := os.read(self.stdout, _CHUNK)):
            self._take_output(data)

    def _take_lines(self, data: bytes) -> None:
        *lines, rest = (self.pending + data).split(b"\n") if b"\n" in data else (self.pending + data,)
        self.pending = bytearray(rest)
        for line in lines:
            if self.on_line(bytes(line)):
                return self._kill("caller")
            if self.cpu_end is None and (allowance := self.allowance()) is not None:
                self.cpu_end = self._cpu() + allowance
        if len(self.pending) > self.limits.value_bytes + _LINE_SLACK:
            self._kill("line")

    def _take_output(self, data: bytes) -> None:
        room = self.limits.stdout_bytes - len(self.printed)
        self.printed += data[:room]
        if len(data) > room:
            self._kill("stdout")

    def _kill(self, why: Killed) -> None:
        self.killed = why
        if self.end is not None:
            return
        with suppress(ProcessLookupError):  # it has ended by itself meanwhile
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _is_ending(self) -> bool:
        """Whether the kernel is taking the child apart, or has done so."""
        flags = self._state()[6:7]
        return bool(flags and int(flags[0]) & _PF_EXITING) or bool(select.select([self.pidfd], [], [], 0)[0])

    def _state(self) -> list[str]:
        """The fields of the child's /proc/PID/stat from its state on; none where that cannot be read."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return []

    def _cpu_left(self) -> float:
        """CPU seconds that are left of the child's allowance; infinity where it has none."""
        return math.inf if self.cpu_end is None or self.end is not None else self.cpu_end - self._cpu()

    def _cpu(self) -> float:
        """CPU seconds that the child has used so far, 0 once it is gone."""
        try:
            return time.clock_gettime(~self.pid << 3 | _CPUCLOCK_SCHED) if self.pid else 0.0
        except OSError:
            return 0.0

    def _waited_for_core(self) -> float:
        """Seconds that the child was ready to run and had no core."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            # Not compiled into this kernel: assume that every process in the run queue had an equal share.
            load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
            return self.limits.wall_s * max(0.0, load - 1)


def _pid_here(pidfd: int) -> int:
    """The process' number as this process sees it: in namespaces of its own the fork-server knows another. 0 once gone."""
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return max(0, next((int(line[4:]) for line in text.splitlines() if line.startswith("Pid:")), 0))


@lru_cache(maxsize=64)
def _job_text(limits: Limits, fds: tuple[str, ...], prelude: tuple[str, ...]) -> bytes:
    return json.dumps({"limits": asdict(limits), "fds": fds, "prelude": prelude}).encode()
