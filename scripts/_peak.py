"""Bytes that a function takes at its peak, as torch's own CPU allocator counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak(act: Callable[[], object]) -> int:
    """Bytes above what was there before, the kernels' temporaries included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = act()
    inner: Any = found.profiler
    events = inner.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = highest = 0
    for _, size in changes:
        now += size
        highest = max(highest, now)
    del result
    return highest
