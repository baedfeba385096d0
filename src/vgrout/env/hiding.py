"""Keeping this process's memory from other processes of the same user while a grader is open in it.

The process holds expected values. Made not dumpable, it cannot be traced, and its memory, environment and descriptors
cannot be read, by anyone without the capability to trace. Candidate code is kept from that by other layers already; this
one does not depend on them. Debuggers and profilers that attach from outside are kept out too, until the last grader
closes. Imports the standard library only.
"""

from __future__ import annotations

import ctypes
import threading

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_lock = threading.Lock()
_before: list[int] = []
"""For each hiding that has not been taken back, whether the process was dumpable before it."""


def hide_process() -> None:
    """Make this process not dumpable until `show_process` has been called as often."""
    with _lock:
        _before.append(_prctl(_PR_GET_DUMPABLE, 0))
        _prctl(_PR_SET_DUMPABLE, 0)


def show_process() -> None:
    """Take one `hide_process` back; the last one leaves the process as it was found."""
    with _lock:
        first, *rest = _before
        _before[:] = [first, *rest[1:]] if rest else []
        if not rest:
            _prctl(_PR_SET_DUMPABLE, min(first, 1))  # 2, "readable by root only", can be found but not set


def _prctl(option: int, value: int) -> int:
    result = ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
    if result < 0:
        raise OSError(ctypes.get_errno(), "prctl: the process cannot be hidden")
    return result
