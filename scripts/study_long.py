"""Three hundred steps of the smoke preset: memory stays flat, and the log can still be read. About ten minutes.

    python scripts/study_long.py [--steps 300] [--intervention routeV]

Asserts, and exits non-zero where it fails:
- resident memory at the end is within 5 % of what it was after the first tenth of the steps (30 at least)
- every step has its metrics row and its line in the log; log.txt stays below 2 KB a step
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from _kill import attempt
from vgrout.run.heartbeat import Heartbeat

LIMIT = 1.05


def resident() -> int:
    """Bytes of memory that this process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="memory and log of a long smoke run")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--intervention", default="routeV")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vgrout-long-") as name:
        found = measured(Path(name), args.intervention, args.steps)
    print(found)


def measured(root: Path, intervention: str, steps: int) -> str:
    """Runs it and checks; what was seen."""
    record, log = root / "memory.jsonl", root / "console.log"

    def listen() -> None:
        at = Heartbeat.at

        def heard(self: Heartbeat, step: int, phase: str) -> None:
            if phase == "between steps":
                with record.open("a") as file:
                    file.write(f"{resident()}\n")
            at(self, step, phase)

        Heartbeat.at = heard

    options = (
        "--steps",
        str(steps),
        "--checkpoint-every",
        "50",
        "--eval.problems",
        "2",
        "--out",
        str(root),
        "--name",
        "long",
    )
    code = attempt(["train", "smoke", "--intervention", intervention, *options], log, before=listen)
    assert code == 0, log.read_text()[-2000:]
    held = [int(line) for line in record.read_text().splitlines()]
    first, last = held[max(30, steps // 10) - 1], held[-1]
    assert len(held) == steps and last <= LIMIT * first, f"{first / 2**20:.0f} MiB became {last / 2**20:.0f} MiB"
    run = root / "runs" / "long"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(steps))
    text = (run / "log.txt").read_text()
    assert len(text) < 2000 * steps, f"{len(text)} characters"
    said = log.read_text().splitlines()
    assert len(said) < 4 * steps, f"{len(said)} lines on the console"
    return (
        f"{intervention}, {steps} steps: {first / 2**20:.0f} MiB after {max(30, steps // 10)}, {last / 2**20:.0f} MiB at the end "
        f"({last / first - 1:+.1%}); log.txt {len(text) / steps:.0f} characters a step, console {len(said) / steps:.1f} lines"
    )


if __name__ == "__main__":
    main()
