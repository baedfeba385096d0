"""Time of one GRPO step: the package's interventions against a plain torch floor on the same work.

    python scripts/bench_step.py --sizes a,b --rounds 5 --json out/bench_step.json

1. Equality, before anything is timed (_bench_equality.py), in fp32.
2. Timing: the systems take turns, one step each, in an order that rotates; the first round is dropped. On a CPU the time
   is the process's CPU seconds on one thread, so that other programs on the machine disturb little; on a GPU it is the
   wall time between synchronisations. Ratios are medians of the ratios within a round.
3. A table, and one line for each limit. Nothing is asserted about time: figures depend on the machine.

Generate includes merging the weights; train is the reference pass, the forward and the backward; optimize is gradient
norms, clipping, AdamW and the decay. Under `none` and `erase` a step includes measuring along a frozen direction; what
renewing it costs is reported beside. `floor_prefix` computes every prompt once per group, in training too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from _bench import RANK, SYSTEMS, System, Work, make_systems, make_work
from _bench_equality import equality
from bench_floor import Settings
from vgrout.env.files import written_atomically
from vgrout.models import DTYPES, SIZES
from vgrout.run.provenance import environment
from vgrout.types import UserError

PHASES = ("generate", "train", "optimize")
LIMITS = (
    *(("none", "floor", 1.1), ("absorb", "none", 1.2), ("label_route", "none", 1.2)),
    *(("erase", "none", 1.05), ("erase@delta_s", "none@delta_s", 1.05)),
)
"""(system, reference, most that a step may cost relative to the reference's)."""
STANDARD = {"prompts": 4, "group_size": 8, "prompt_tokens": 200, "max_new": 96, "dtype": "fp32"}
"""The work that the limits are stated for, by the names of the options."""

Times = list[dict[str, dict[str, float]]]
"""Per round, per system, per phase: seconds."""


def now(device: str) -> float:
    """CPU seconds of this process, or wall seconds once the GPU has finished what was queued."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def one_step(system: System, step: int, device: str) -> dict[str, float]:
    """Seconds of each phase of one step."""
    gc.collect()
    marks = [now(device)]
    for phase in (system.generate, system.train, system.optimize):
        phase(step)
        marks.append(now(device))
    return {phase: end - start for phase, start, end in zip(PHASES, marks, marks[1:])} | {"step": marks[-1] - marks[0]}


def interleaved(systems: dict[str, System], rounds: int, device: str) -> Times:
    """`rounds` rounds after a dropped one; each system steps once in a round, and the order rotates."""
    names, times = list(systems), []
    for turn in range(rounds + 1):
        shift = turn % len(names)
        order = names[shift:] + names[:shift]
        seconds = {name: one_step(systems[name], turn, device) for name in order}
        times.append({name: seconds[name] for name in names})
        shown = ", ".join(f"{name} {seconds[name]['step']:.2f}" for name in names)
        print(f"round {turn}{' (dropped)' if turn == 0 else ''}: {shown}", flush=True)
    return times[1:]


def ratio(times: Times, system: str, reference: str, phase: str = "step") -> float:
    """Median over the rounds of the ratio within a round."""
    return median(t[system][phase] / t[reference][phase] for t in times)


def table(times: Times) -> str:
    """Median seconds of the phases and the ratios of the step, as a Markdown table."""
    references = [name for name in ("floor", "none") if name in times[0]]
    head = ["system", *PHASES, "step", *(f"step / {name}" for name in references)]
    rows = [head, ["---"] * len(head)]
    for name in times[0]:
        seconds = [f"{median(t[name][phase] for t in times):.2f}" for phase in (*PHASES, "step")]
        rows.append([name, *seconds, *(f"{ratio(times, name, reference):.2f}" for reference in references)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |" for row in rows)


def limit_lines(times: Times, size: str, *, standard: bool) -> list[str]:
    """One line for each limit whose two systems were timed, with the spread over the rounds.

    The limits are stated for the standard work; at any other work the ratio is shown without a verdict.
    """
    lines = []
    for system, reference, limit in LIMITS:
        if {system, reference} <= times[0].keys():
            ratios = [t[system]["step"] / t[reference]["step"] for t in times]
            met = "met" if median(ratios) <= limit else "NOT met"
            verdict = f"limit {limit}: {met}" if standard else "no limit is stated for this work"
            spread = f"rounds {min(ratios):.2f} to {max(ratios):.2f}"
            lines.append(f"size {size}: {system} {median(ratios):.2f}x {reference}, {verdict} ({spread})")
    return lines


def run_size(args: argparse.Namespace, size: str) -> tuple[dict[str, Any], list[str]]:
    """Equality and timing at one size: what the JSON file keeps, and the lines of the limits."""

    def work(dtype: str) -> Work:
        return make_work(
            size,
            prompts=args.prompts,
            prompt_tokens=args.prompt_tokens,
            settings=Settings(group_size=args.group_size, max_new=args.max_new),
            dtype=dtype,
            device=args.device,
        )

    print(f"\nsize {size}: {SIZES[f'tiny:{size}']}")
    equal = [] if args.skip_equality else equality(work("fp32"))
    print("\n".join(equal))
    load_before = os.getloadavg()
    systems = make_systems(work(args.dtype), args.systems)
    extraction = {n: t for n, s in systems.items() if (t := getattr(s, "extraction_s", None)) is not None}
    times = interleaved(systems, args.rounds, args.device)
    asked = {option: getattr(args, option) for option in STANDARD}
    limits = limit_lines(times, size, standard=asked == STANDARD)
    print(f"\n{table(times)}")
    for name, seconds in extraction.items():
        print(
            f"size {size}: extraction (or one renewal) of v_hack from the 24 core pairs, {name}: {seconds:.2f} s, not in the step"
        )
    record = {
        "equality": equal,
        "extraction": extraction,
        "rounds": times,
        "load": [load_before, os.getloadavg()],
        "limits": limits,
    }
    return record, limits


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time of one GRPO step against a plain torch floor")
    parser.add_argument("--sizes", type=_names(("a", "b")), default=["a", "b"], help="comma-separated; default a,b")
    parser.add_argument("--systems", type=_names(SYSTEMS), default=list(SYSTEMS), help="comma-separated; default all")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that is dropped; default 5")
    parser.add_argument("--prompts", type=int, help="prompts of a step (P)")
    parser.add_argument("--group-size", type=int, help="rollouts of a prompt (G)")
    parser.add_argument("--prompt-tokens", type=int, help="tokens of a prompt")
    parser.add_argument("--max-new", type=int, help="forced new tokens of a rollout")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the base model while timing")
    parser.add_argument("--skip-equality", action="store_true", help="time without comparing first")
    parser.add_argument("--json", type=Path, help="write every round's figures to this file")
    parser.set_defaults(**STANDARD)
    args = parser.parse_args()
    if min(args.rounds, args.prompts, args.prompt_tokens, args.max_new) < 1 or args.group_size < 2:
        parser.error("--rounds, --prompts, --prompt-tokens and --max-new must be at least 1, --group-size at least 2")
    return args


def _names(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
        return list(dict.fromkeys(names))

    return parse


def main() -> None:
    args = arguments()
    try:
        # Opened before the work, so that a file that cannot be written is known at once.
        with written_atomically(args.json) if args.json else nullcontext() as file:
            record, limits = benchmark(args)
            if file:
                file.write((json.dumps(record, indent=1) + "\n").encode())
    except UserError as error:
        sys.exit(f"bench_step: {error}")
    if args.json:
        print(f"\nwritten: {args.json}")
    print("\n" + "\n".join(limits))


def benchmark(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Every size in turn: the whole record, and the lines of the limits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: torch {torch.__version__} sees no GPU; use --device cpu")
    device = processor() if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    clock = "CPU seconds of one thread" if args.device == "cpu" else "wall seconds"
    before = environment()
    print(f"{clock} on {device}, {args.dtype}, load {os.getloadavg()[0]:.1f}, versions {before['versions']}")
    print(
        f"a step: {args.prompts} prompts of {args.prompt_tokens} tokens x {args.group_size} rollouts of {args.max_new} "
        f"forced tokens, total LoRA rank {2 * RANK}, KL on"
    )
    results = {size: run_size(args, size) for size in args.sizes}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    sizes = {size: record for size, (record, _) in results.items()}
    record = {"environment": before, "clock": clock, "device": device, "settings": settings, "sizes": sizes}
    return record, [line for _, lines in results.values() for line in lines]


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
