"""Time of one GRPO step: the package's interventions and TRL's trainer against a plain torch floor on the same work.

    python scripts/bench_step.py --sizes a,b --rounds 5 --json out/bench_step.json

1. Equality, before anything is timed, in fp32 (_bench_equality.py, _bench_trl.py).
2. Timing: the systems take turns, one step each, in an order that rotates; the first round is dropped. On a CPU the time
   is the process's CPU seconds on one thread, so that other programs on the machine disturb little; on a GPU it is the
   wall time between synchronisations. Ratios are medians of the ratios within a round.
3. Seconds and shares of every phase, and one line for each limit. Nothing is asserted about time: figures depend on the
   machine.

How to read the tables, and what the systems are: docs/benchmark.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

# TRL asks the hub for nothing that a model made here could have.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from _bench import FLOORS, OWN, Ours, PlainFloor, System
from _bench_equality import equality
from _bench_phases import PAIRS
from _bench_report import STANDARD, Times, limit_lines, seconds_table, shares_table
from _bench_trl import MISSING, TRL, Trl, trl_equality, trl_version
from _bench_work import RANK, SHAPES, Work, make_work
from bench_floor import Settings
from vgrout.env.files import written_atomically
from vgrout.interventions import INTERVENTIONS
from vgrout.models import DTYPES, SIZES
from vgrout.run.provenance import environment
from vgrout.types import UserError

SYSTEMS = (*FLOORS, TRL, *OWN)
GROUPS: dict[str, tuple[str, ...]] = {"default": (*FLOORS, TRL, *INTERVENTIONS), "all": SYSTEMS}
"""What a name of several systems stands for; `all` adds the costly forms and the other adapter."""


def make_system(work: Work, name: str) -> System:
    """The system of this name, with a model of its own."""
    if name in FLOORS:
        return PlainFloor(work, shared_prefix=name == "floor_prefix")
    return Trl(work) if name == TRL else Ours(work, name)


def one_step(system: System, step: int) -> dict[str, float]:
    """Seconds of each phase of one step, and of the step; passes over the pairs are apart from both."""
    gc.collect()
    system.phases.clear()
    system.step(step)
    return system.phases.seconds | {"step": system.phases.step}


def interleaved(systems: dict[str, System], rounds: int) -> Times:
    """`rounds` rounds after a dropped one; each system steps once in a round, and the order rotates."""
    names, times = list(systems), []
    for turn in range(rounds + 1):
        print("dropped round:" if turn == 0 else f"round {turn} of {rounds}:", end="", flush=True)
        shift, seconds = turn % len(names), {}
        for name in names[shift:] + names[:shift]:
            seconds[name] = one_step(systems[name], turn)
            print(f" {name} {seconds[name]['step']:.2f}", end="", flush=True)
        print()
        times.append({name: seconds[name] for name in names})
    return times[1:]


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

    print(f"\nsize {size}: {SIZES[SHAPES[size]]}")
    equal: list[str] = []
    checks: list[Callable[[Work], Iterator[str]]] = [equality, trl_equality] if TRL in args.systems else [equality]
    compared = work("fp32")
    for check in [] if args.skip_equality else checks:
        for line in check(compared):
            print(line, flush=True)
            equal.append(line)
    load_before = os.getloadavg()
    timed = compared if args.dtype == "fp32" else work(args.dtype)
    systems = {name: make_system(timed, name) for name in args.systems}
    times = interleaved(systems, args.rounds)
    limits = limit_lines(times, size, standard={option: getattr(args, option) for option in STANDARD} == STANDARD)
    print(f"\nseconds of a step, medians over {args.rounds} rounds\n{seconds_table(times)}")
    print(f"\nwhere the time goes, shares of the step\n{shares_table(times)}")
    extraction = {name: s.extraction_s for name, s in systems.items() if s.extraction_s is not None}
    if extraction:
        shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in extraction.items())
        print(f"\none renewal of the direction from the 24 core pairs, in no step here: {shown}")
    record = {
        "equality": equal,
        "extraction": extraction,
        "rounds": times,
        "load": [load_before, os.getloadavg()],
        "limits": limits,
    }
    return record, limits


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time of one GRPO step against a plain torch floor and TRL's trainer")
    parser.add_argument("--sizes", type=_names(tuple(SHAPES)), default=["a", "b"], help="comma-separated; default a,b")
    parser.add_argument(
        "--systems",
        type=_names(SYSTEMS, GROUPS),
        default=list(GROUPS["default"]),
        help=f"comma-separated; default: {','.join(GROUPS['default'])}; `all` adds costly forms and the other adapter",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that is dropped; default 5")
    parser.add_argument("--prompts", type=int, help="prompts of a step (P); default 4")
    parser.add_argument("--group-size", type=int, help="rollouts of a prompt (G); default 8")
    parser.add_argument("--prompt-tokens", type=int, help="tokens of a prompt; default 200")
    parser.add_argument("--max-new", type=int, help="forced new tokens of a rollout; default 96")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the base model while timing; default fp32")
    parser.add_argument("--skip-equality", action="store_true", help="time without comparing first")
    parser.add_argument("--json", type=Path, help="write every round's figures to this file")
    parser.set_defaults(**STANDARD)
    args = parser.parse_args(argv)
    if min(args.rounds, args.prompts, args.prompt_tokens, args.max_new) < 1 or args.group_size < 2:
        parser.error("--rounds, --prompts, --prompt-tokens and --max-new must be at least 1, --group-size at least 2")
    return args


def _names(known: tuple[str, ...], groups: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known and name not in groups]:
            expected = ", ".join((*groups, *known))
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {expected}")
        return list(dict.fromkeys(one for name in names for one in groups.get(name, (name,))))

    return parse


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
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
    print("\nfactors and their limits\n" + ("\n".join(limits) or "none: no two systems here have a limit between them"))


def benchmark(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Every size in turn: the whole record, and the lines of the limits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: torch {torch.__version__} sees no GPU; use --device cpu")
    left_out = [] if trl_version() or TRL not in args.systems else [MISSING]
    args.systems = [name for name in args.systems if name != TRL or trl_version()]
    if not args.systems:
        raise UserError(f"--systems {TRL}: nothing is left to time; {MISSING}")
    device = processor() if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    clock = "CPU seconds of one thread" if args.device == "cpu" else "wall seconds"
    before = environment()
    # torch's own name for itself tells a CPU build from a CUDA build.
    libraries = {name: metadata.version(name) for name in ("transformers", "peft")}
    versions = {"torch": torch.__version__, **libraries, TRL: trl_version()}
    print(f"{clock} on {device}, {args.dtype}, load {os.getloadavg()[0]:.1f}, versions {versions}")
    print(
        f"a step: {args.prompts} prompts of {args.prompt_tokens} tokens x {args.group_size} rollouts of {args.max_new} "
        f"forced tokens, total LoRA rank {2 * RANK}, KL on; {PAIRS}: passes over the contrastive pairs, in no step"
    )
    print("\n".join(left_out), end="\n" if left_out else "")
    results = {size: run_size(args, size) for size in args.sizes}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    record = {
        "environment": before,
        "versions": versions,
        "clock": clock,
        "device": device,
        "settings": settings,
        "left_out": left_out,
        "sizes": {size: record for size, (record, _) in results.items()},
    }
    return record, [line for _, lines in results.values() for line in lines]


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
