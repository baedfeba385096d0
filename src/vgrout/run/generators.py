"""The global random generators of torch, Python and numpy. Nothing of a run draws from them; a plug-in may."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Where they stand, as plain data."""
    version, keys, position = random.getstate()[0], list(random.getstate()[1]), random.getstate()[2]
    name, numbers, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": (version, keys, position),
        "numpy": (name, torch.from_numpy(np.asarray(numbers).astype(np.int64)), *rest),
    }


def seed_generators(seed: int) -> None:
    """Sets them for a run's beginning, so that a plug-in which draws from them repeats itself as well."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def set_random_states(states: Mapping[str, Any]) -> None:
    """Sets what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    version, keys, position = states["python"]
    random.setstate((version, tuple(keys), position))
    name, numbers, *rest = states["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))
