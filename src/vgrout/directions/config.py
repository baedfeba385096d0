"""What direction a run uses, and how it is extracted and renewed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vgrout.types import UserError

TokenNorm = Literal["mean", "sum", "fixed"]


@dataclass(frozen=True)
class ExtractionConfig:
    """Extraction of a direction from pairs (spec 4.2)."""

    top_k: int = 12
    """Right singular vectors of v_hack that are extracted per module; at most as many as there are pairs."""
    k_use: int = 5
    """The first k_use of them are used."""
    noise_floor: float = 0.25
    """Quantile of all extracted singular values over all modules below which an axis is dropped; 0 drops none."""
    refresh_every: int = 5
    """Steps between two extractions with the adapter as it then is; 0: extracted once (frozen)."""
    token_norm: TokenNorm = "mean"
    """A completion's loss: mean or sum over its tokens, or sum divided by max_new as in the training loss (fixed)."""
    token_budget: int = 8192
    """Tokens, padding included, of one batch of the extraction; each of its completions keeps a gradient of its own."""
    measure: bool = True
    """Measure cin and cout in runs whose intervention does not use the direction (none, none_full)."""
    artefact: Path | None = None
    """Direction file to use; it must match the run in everything that matters. None: directions/ under --out, extracted
    where it is not there."""

    def __post_init__(self) -> None:
        checks = (
            ("top_k", self.top_k >= 1, "at least 1"),
            ("k_use", 1 <= self.k_use <= self.top_k, f"from 1 to top_k = {self.top_k}"),
            ("noise_floor", 0 <= self.noise_floor < 1, "a quantile, at least 0 and below 1"),
            ("refresh_every", self.refresh_every >= 0, "at least 0 (0: never)"),
            ("token_budget", self.token_budget >= 1, "at least 1"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise UserError(f"--extraction.{name.replace('_', '-')} {getattr(self, name)}: expected {expected}")
