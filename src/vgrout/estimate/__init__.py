"""How much memory a run takes, phase by phase, from its numbers alone: no weights, no torch.

The arithmetic follows the code as it is: what a module keeps, what a backward saves, what a context manager holds. Bytes
are those of tensors; an allocator's rounding, library workspaces and a CUDA context (about half a GB) come on top.
"""

from vgrout.estimate.phases import Memory, Term, estimate, total
from vgrout.estimate.shapes import PUBLISHED, Shape, shape_of
from vgrout.estimate.sizes import checkpoint_bytes
from vgrout.estimate.work import Backward, Keeps, Sampling, Work

__all__ = [
    "PUBLISHED",
    "Backward",
    "Keeps",
    "Memory",
    "Sampling",
    "Shape",
    "Term",
    "Work",
    "checkpoint_bytes",
    "estimate",
    "shape_of",
    "total",
]
