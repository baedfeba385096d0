"""Smoke in bf16: every adapter trains, and what sampling with merged weights and training with folded ones differ by is
reported and bounded.

Invariants:
- a bf16 run ends, its gap is above that of fp32 and within the bound, and eval.json and the console say how large it is
- a gap above the bound stops the run by the wire of that name
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from _cli import run as command
from _gate import Gate

gate = Gate(__doc__)


def gap_of(root: Path, name: str, *options: str) -> tuple[dict[str, float], str]:
    short = ("--steps", "3", "--eval.problems", "2", "--eval.no-controls", "--out", str(root), "--name", name)
    code, out, err = command("train", "smoke", *short, *options)
    assert code == 0, err[-2000:]
    return json.loads((root / "runs" / name / "eval.json").read_text())["sampler_gap"], out


@gate.invariant("in bf16 lora2r and delta_s train; the gap is reported, above fp32's and within the bound", slow=True)
def _():
    with tempfile.TemporaryDirectory() as name:
        found = {}
        for kind, intervention, dtype in (
            ("lora2r", "routeV", "fp32"),
            ("lora2r", "routeV", "bf16"),
            ("delta_s", "erase", "bf16"),
        ):
            options = ("--intervention", intervention, "--adapter.kind", kind, "--model.dtype", dtype)
            found[kind, dtype], out = gap_of(Path(name), f"{kind}-{dtype}", *options)
            assert "nats a token on average" in out, out[-800:]
    for (_, dtype), gap in found.items():
        low, high = (0, 1e-5) if dtype == "fp32" else (1e-5, 0.1)
        assert low <= gap["mean"] < high and gap["max"] >= gap["mean"], found
    return "; ".join(
        f"{kind} {dtype} {gap['mean']:.1e}, at most {gap['max']:.1e}" for (kind, dtype), gap in found.items()
    )


@gate.invariant("a gap above the bound stops the run", slow=True)
def _():
    with tempfile.TemporaryDirectory() as name:
        options = (
            "--steps",
            "3",
            "--model.dtype",
            "bf16",
            "--tripwires.gap-stop",
            "1e-6",
            "--out",
            name,
            "--name",
            "far",
        )
        code, _, err = command("train", "smoke", *options)
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert code == 2 and "sampler and trainer differ" in line and "step 1" in line, err
    return line[:100]


if __name__ == "__main__":
    gate.main()
