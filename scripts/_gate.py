"""The frame of every gate: declared invariants, one printed line each, a non-zero exit when one fails.

    from _gate import Gate
    gate = Gate(__doc__)

    @gate.invariant("the deploy view equals the folded deploy weights")
    def _():
        assert error < 1e-6, error
        return f"max error {error:.1e}"          # the figure printed beside the invariant

    if __name__ == "__main__":
        gate.main()

`slow=True` keeps an invariant out of the quick tier. `raise Skip("reason")` is for data or layers that a machine may lack.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

os.environ.setdefault("VGROUT_TYPECHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Decompositions of tiny models are no business of the user's own cache.
os.environ.setdefault("VGROUT_CACHE", str(Path(tempfile.gettempdir()) / f"vgrout-gates-{os.getuid()}"))


# Runs log their tables too; a gate's output is its invariants.
logger.remove()
logger.add(sys.stderr, level="WARNING")


class Skip(Exception):
    """Raised by an invariant that needs something this machine lacks; the reason is printed."""


def shared_folder() -> Path:
    """The folder of extra real data (`VGROUT_SHARED`, default ../shared), or Skip where there is none."""
    folder = Path(os.environ.get("VGROUT_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        raise Skip(f"no extra data at {folder} (name its folder in VGROUT_SHARED)")
    return folder / "data"


def refusal(act: Callable[[], object]) -> str:
    """The message of the UserError that `act` must raise; it must be one line."""
    from vgrout.types import UserError  # not before the switch above is set

    try:
        act()
    except UserError as error:
        assert "\n" not in str(error), f"more than one line: {error}"
        return str(error)
    raise AssertionError("nothing was refused")


@dataclass(frozen=True)
class Result:
    gate: str
    invariant: str
    status: str
    figure: str
    seconds: float


class Gate:
    """A named list of invariants; see the module's docstring."""

    def __init__(self, doc: str | None):
        assert doc, "a gate opens with the list of invariants it holds"
        self.name = Path(sys._getframe(1).f_globals["__file__"]).stem
        self.invariants: list[tuple[str, bool, Callable[[], str | None]]] = []

    def invariant(self, sentence: str, *, slow: bool = False):
        def register(check: Callable[[], str | None]):
            self.invariants.append((sentence, slow, check))
            return check

        return register

    def run(self, *, tier: str = "all", only: str = "") -> list[Result]:
        """Checks the invariants of a tier (a key of TIERS) whose sentence contains `only`."""
        results = []
        for sentence, slow, check in self.invariants:
            if slow not in TIERS[tier] or only not in sentence:
                continue
            start = time.perf_counter()
            try:
                figure, status = check() or "", "passed"
            except Skip as reason:
                figure, status = str(reason), "skipped"
            except Exception:  # noqa: BLE001 - a gate reports every failure and goes on
                figure, status = traceback.format_exc(), "FAILED"
            result = Result(self.name, sentence, status, figure, time.perf_counter() - start)
            results.append(result)
            print(f"{status:7s} {self.name}: {sentence} [{figure.strip()}] {result.seconds:.1f}s", flush=True)
        return results

    def main(self) -> None:
        parser = argparse.ArgumentParser(description=f"gate {self.name}")
        add_tiers(parser)
        parser.add_argument("--only", default="", help="only invariants whose sentence contains this text")
        args = parser.parse_args()
        results = self.run(tier=args.tier, only=args.only)
        print(closing_line(results))
        sys.exit(any(r.status == "FAILED" for r in results) or not results)


TIERS = {"all": (False, True), "quick": (False,), "slow": (True,)}
"""Name of a tier, and which of the quick (False) and the slow (True) invariants are in it."""


def add_tiers(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose a tier."""
    tier = parser.add_mutually_exclusive_group()
    options = {
        "quick": "only the quick tier",
        "slow": "only what the quick tier leaves out",
        "all": "both (the default)",
    }
    for name, text in options.items():
        tier.add_argument(f"--{name}", dest="tier", action="store_const", const=name, default="all", help=text)


def closing_line(results: list[Result]) -> str:
    """`N passed, N failed` (`, N skipped`): the line that a runner of gates ends with."""
    count = {s: sum(r.status == s for r in results) for s in ("passed", "FAILED", "skipped")}
    line = f"{count['passed']} passed, {count['FAILED']} failed"
    return line + (f", {count['skipped']} skipped" if count["skipped"] else "")
