"""The command `vgrout`. A user's mistake is one line on standard error and exit code 2; no traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vgrout.arguments import call, option, parse, parse_changes, parse_run, without
from vgrout.types import Interrupted, UserError

USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 on success, 2 on a user's mistake, 130 when interrupted."""
    if sys.platform == "win32":  # said before anything is imported that Windows does not have
        sys.stderr.write("error: vgrout needs Linux and this is Windows; run it in a Linux container or under WSL 2\n")
        sys.exit(USAGE_ERROR)
    from vgrout.run.console import setup_console

    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        sys.exit(0 if args else USAGE_ERROR)
    setup_console()
    try:
        if args[0] not in COMMANDS:
            raise UserError(f"vgrout {args[0]}: unknown command; expected one of {', '.join(COMMANDS)}")
        COMMANDS[args[0]](args[1:])
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(USAGE_ERROR)
    except Interrupted as stop:
        sys.stderr.write(f"interrupted: {stop}\n")
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


def _usage() -> str:
    lines = ["usage: vgrout COMMAND ... (`vgrout COMMAND --help` explains its options)", ""]
    lines += [f"  {name:9} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


def train_command(args: Sequence[str]) -> None:
    """train PRESET [--intervention NAME | MODULE:CLASS] ..., or --resume RUN: run GRPO, evaluate, leave a run folder."""
    from vgrout.presets import PRESETS

    if any(arg.partition("=")[0] == "--resume" for arg in args):
        _resume(args)
        return
    if not args or args[0].startswith("-"):
        if args and args[0] in ("-h", "--help"):
            print("usage: vgrout train PRESET [--intervention NAME] [--NAME.setting VALUE] [OPTIONS]\n")
            for name, build in PRESETS.items():
                print(f"  {name:8} {(build.__doc__ or '').splitlines()[0]}")
            print("\n`vgrout train PRESET --help` lists every option with its default in that preset.")
            print("`vgrout train PRESET ... --dry-run` says what a run would do and need, without running it.")
            print("`vgrout train --resume RUN` continues a run; changed options are refused without --override.")
            return
        raise UserError(f"vgrout train: expected a preset first, one of {', '.join(PRESETS)}")
    config = parse_run(args[0], without(args[1:], "--dry-run"), f"vgrout train {args[0]}")
    if "--dry-run" in args:
        from vgrout.dry_run import dry_run

        return dry_run(config)
    from vgrout.train import train

    print(train(config, graceful=True))


def _resume(args: Sequence[str]) -> None:
    from vgrout.train import resume

    folder = option(args, "--resume", default="")
    if not folder or folder.startswith("-"):
        raise UserError("--resume: expected a run folder behind it; `vgrout runs` lists them")
    rest = without(without(args, "--resume", values=True), "--override")
    asked = functools.partial(parse_changes, args=rest, prog="vgrout train --resume RUN")
    print(resume(Path(folder), asked, override="--override" in args))


def doctor_command(args: Sequence[str]) -> None:
    """doctor: what works on this machine, and what to do about the rest."""
    from vgrout.doctor import run_doctor

    call(run_doctor, args, "vgrout doctor")


def demo_command(args: Sequence[str]) -> None:
    """demo: the whole experiment in the micro world: train every arm, ablate, and count hacks and solved problems."""
    from vgrout.demo import demo

    call(demo, args, "vgrout demo")


def eval_command(args: Sequence[str]) -> None:
    """eval RUN [--checkpoint FILE]: evaluate a checkpoint of a run again, in every view."""
    from vgrout.reevaluate import reevaluate

    def evaluate(
        run: Annotated[Path, tyro.conf.Positional],
        checkpoint: Path | None = None,
        eval_problems: str | None = None,
    ) -> None:
        """Evaluates a run's adapter on held-out problems, in the views of its configuration, with the controls of a routed run.

        Args:
            run: Run folder.
            checkpoint: Checkpoint file; none: the run's last one.
            eval_problems: Problem file; none: the run's own held-out problems.
        """
        reevaluate(run, checkpoint, eval_problems)

    call(evaluate, args, "vgrout eval")


def export_command(args: Sequence[str]) -> None:
    """export RUN --view V --to peft|merged --out DIR: a checkpoint as a folder for peft, transformers and others."""
    from vgrout.export import export_run

    def export(
        run: Annotated[Path, tyro.conf.Positional],
        view: Literal["deploy", "full", "base"],
        to: Literal["peft", "merged"],
        out: Path,
        checkpoint: Path | None = None,
        dtype: Literal["fp32", "bf16"] | None = None,
    ) -> None:
        """Writes a view of a run's adapter as a LoRA or as a whole model, loads it again with plain libraries and compares.

        Args:
            run: Run folder.
            view: deploy (quarantine-ablated) or full (both blocks).
            to: peft, a LoRA for the run's base model (lora2r only), or merged, a whole model.
            out: Folder to make; it appears only when the export has passed its checks.
            checkpoint: Checkpoint file; none: the run's last numbered one.
            dtype: Type of the exported tensors; none: fp32 for peft, the model's own for merged.
        """
        export_run(run, view, to, out, checkpoint, dtype)

    call(export, args, "vgrout export")


def grade_command(args: Sequence[str]) -> None:
    """grade --problems P --responses R --out V: grade stored responses in the sandbox."""
    from vgrout.env.grade_files import grade_files
    from vgrout.run.progress import Progress

    def grade(
        problems: Path,
        responses: Path,
        out: Path,
        workers: int | None = None,
        cache: Path | None = None,
        sandbox_allow_missing: tuple[str, ...] = (),
        sandbox_namespaces: bool = False,
    ) -> None:
        """Grades responses against problems and writes one verdict row per response.

        After Ctrl-C the same command goes on where it was.

        Args:
            problems: Problem rows, .jsonl or .jsonl.gz.
            responses: Rows with id, problem_id, mode, response and optionally markers (train or eval).
            out: File that receives the verdict rows (.gz to compress).
            workers: Grader processes; none: one per core.
            cache: File of verdicts that are not computed again; none: OUT.partial, until OUT is whole.
            sandbox_allow_missing: Sandbox layers that this machine may lack.
            sandbox_namespaces: Wrap the sandbox in namespaces of its own as well.
        """
        with Progress("measuring the canonical solutions") as bar:

            def show(done: int, total: int) -> None:
                if bar.total != total:
                    bar.phase("grading", total)
                bar.update(done)

            summary = grade_files(
                *(problems, responses, out),
                workers=workers,
                allow_missing=sandbox_allow_missing,
                namespaces=sandbox_namespaces,
                cache=cache,
                progress=show,
            )
        print(summary)

    call(grade, args, "vgrout grade")


def _verbs(prog: str, verbs: Mapping[str, object]) -> None:
    """What `PROG --help` prints: each verb with the first line of its docstring."""
    print(f"usage: {prog} VERB ... (`{prog} VERB --help` explains its options)\n")
    for name, what in verbs.items():
        print(f"  {name:8} {((getattr(what, '__doc__', None) or '').strip().splitlines() or [''])[0]}")


def data_command(args: Sequence[str]) -> None:
    """data fetch | check | show | convert ...: the benchmark's files, problem files checked, problems as the model sees them."""
    from vgrout.problem_files.command import VERBS

    if args[:1] in (["-h"], ["--help"]):
        return _verbs("vgrout data", VERBS)
    if not args or args[0] not in VERBS:
        raise UserError(f"vgrout data: expected one of the verbs {', '.join(VERBS)}, as in `vgrout data show builtin`")
    call(VERBS[args[0]], args[1:], f"vgrout data {args[0]}")


def sample_command(args: Sequence[str]) -> None:
    """sample RUN --view deploy|full|base: completions of a checkpoint on held-out problems, each with its verdict."""
    from vgrout.sample import sample_command as sample

    call(sample, args, "vgrout sample")


def runs_command(args: Sequence[str]) -> None:
    """runs [ROOT]: the run folders under a root, newest first: state, steps, last figures, final evaluation."""
    from vgrout.runs_table import list_runs_command

    call(list_runs_command, args, "vgrout runs")


def direction_command(args: Sequence[str]) -> None:
    """direction extract | check PRESET ...: a direction from contrastive pairs, and what it is worth beside its placebos."""
    from vgrout.direction_check import check_direction, extract_direction
    from vgrout.directions.options import CheckOptions, ExtractOptions
    from vgrout.presets import PRESETS

    verbs = {"extract": (ExtractOptions, extract_direction), "check": (CheckOptions, check_direction)}
    if args[:1] in (["-h"], ["--help"]):
        return _verbs("vgrout direction", {name: act for name, (_, act) in verbs.items()})
    if not args or args[0] not in verbs:
        raise UserError(
            f"vgrout direction: expected one of the verbs {', '.join(verbs)}, as in `vgrout direction check micro`"
        )
    prog, (options, act) = f"vgrout direction {args[0]}", verbs[args[0]]
    if args[1:2] in (["-h"], ["--help"]):
        parse(options, args[1:2], f"{prog} PRESET")
    if len(args) < 2 or args[1].startswith("-"):
        raise UserError(f"{prog}: expected a preset first, one of {', '.join(PRESETS)}")
    own, others = parse(options, args[2:], f"{prog} {args[1]}", return_unknown_args=True)
    act(parse_run(args[1], others, f"{prog} {args[1]}"), own)


def micro_command(args: Sequence[str]) -> None:
    """micro base | rates: train a base model of the micro world, or measure one before any RL."""
    from vgrout.micro_commands import rates_command, train_base_command

    verbs = {"base": train_base_command, "rates": rates_command}
    if args[:1] in (["-h"], ["--help"]):
        return _verbs("vgrout micro", verbs)
    if not args or args[0] not in verbs:
        raise UserError(
            f"vgrout micro: expected one of the verbs {', '.join(verbs)}, as in `vgrout micro base --seed 1`"
        )
    call(verbs[args[0]], args[1:], f"vgrout micro {args[0]}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train_command,
    "doctor": doctor_command,
    "demo": demo_command,
    "eval": eval_command,
    "export": export_command,
    "grade": grade_command,
    "data": data_command,
    "sample": sample_command,
    "runs": runs_command,
    "direction": direction_command,
    "micro": micro_command,
}

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
