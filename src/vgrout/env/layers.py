"""Which of the sandbox's layers this machine has, and what is refused without them."""

from __future__ import annotations

import sys

from vgrout.env import sandbox
from vgrout.env.namespaces import refused
from vgrout.types import UserError

CONTAINER = "run vGROUT in a Linux container on x86-64 or aarch64 (for example `docker run -it python:3.11`)"


def missing_layers(allow_missing: tuple[str, ...]) -> tuple[str, ...]:
    """The sandbox layers that this machine lacks and the user allows to be missing; UserError for any other."""
    for name in allow_missing:
        if name not in sandbox.WAIVABLE:
            raise UserError(f"sandbox layer {name!r} cannot be waived; only {', '.join(sandbox.WAIVABLE)} can")
    if not sys.platform.startswith("linux"):
        raise UserError(f"the grader's sandbox needs Linux and this is {sys.platform}; {CONTAINER}")
    have = sandbox.available()
    missing = tuple(layer for layer in sandbox.LAYERS if layer not in have)
    for layer in missing:
        if layer not in allow_missing:
            remedy = f"{CONTAINER}, on a kernel that has it"
            waive = (
                f", or allow it to be missing with --sandbox-allow-missing {layer} (training: --env.sandbox-allow-missing {layer})"
                if layer in sandbox.WAIVABLE
                else ""
            )
            raise UserError(f"sandbox layer {layer!r} is missing on this machine; {remedy}{waive}")
    return missing


def require_namespaces() -> None:
    """UserError where this machine does not let the fork-servers have namespaces of their own."""
    if reason := refused():
        raise UserError(
            f"sandbox layer 'namespaces' was asked for and this machine refuses it ({reason}); allow user namespaces "
            "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns) or go without it"
        )
