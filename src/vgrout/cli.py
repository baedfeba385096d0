"""The command `vgrout`. A user's mistake is one line on standard error and exit code 2; no traceback."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vgrout.types import UserError

USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 on success, 2 on a user's mistake, 130 when interrupted."""
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
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


def _usage() -> str:
    lines = ["usage: vgrout COMMAND ... (`vgrout COMMAND --help` explains its options)", ""]
    lines += [f"  {name:9} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


def parse_run(name: str, args: Sequence[str], prog: str) -> Any:
    """The preset's configuration with the command line's overrides.

    The intervention is read first, because its name decides which settings exist (`--NAME.setting`), and the adapter,
    because it decides the preset's learning rate.
    """
    from vgrout.config import RunConfig
    from vgrout.interventions import INTERVENTIONS, intervention_class
    from vgrout.presets import design_named, preset

    design = _option(args, "--design", default="") or None
    intervention = _option(args, "--intervention", default=design_named(design).intervention if design else "none")
    if not intervention or intervention.startswith("-"):
        raise UserError(f"--intervention: expected a name behind it, one of {', '.join(INTERVENTIONS)}")
    named = tyro.conf.arg(name=intervention)
    settings: Any = Annotated[intervention_class(intervention).Settings, named]  # ty: ignore[invalid-type-form]
    description = f"Trains with one of the interventions {', '.join(INTERVENTIONS)}; their settings are --NAME.setting."
    default = preset(name, intervention, _option(args, "--adapter.kind", default="") or None, design)
    return parse(RunConfig[settings], args, prog, default=default, description=description)


def _option(args: Sequence[str], flag: str, *, default: str) -> str:
    """What stands behind the flag, "" where nothing does. Raises `UserError` where it is named twice."""
    found = [args[i + 1] if i + 1 < len(args) else "" for i, arg in enumerate(args) if arg == flag]
    found += [arg.removeprefix(flag + "=") for arg in args if arg.startswith(flag + "=")]
    if len(found) > 1:
        raise UserError(f"{flag}: named {len(found)} times ({', '.join(found)}); name it once")
    return found[0] if found else default


def parse(what: Any, args: Sequence[str], prog: str, **options: Any) -> Any:
    """What tyro makes of the arguments; where it refuses them, a UserError with the text of its box on one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(what, args=list(args), prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(f"{_box_text(box.getvalue())}; see `{prog} --help`") from None


def call(function: Callable[..., None], args: Sequence[str], prog: str) -> None:
    """Parses the arguments of a command's function, and only then calls it, with standard error as it was."""

    @functools.wraps(function)
    def bound(*values: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(function, *values, **named)

    parse(bound, args, prog)()


def _box_text(box: str) -> str:
    """The message in tyro's box (of lines or of blanks), with the option it suggests; title and help texts left out."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:
        text = line.strip("\u2502\u2570\u256f ")
        if text.strip("\u2500-"):
            sections[-1].append(text)
        else:  # a rule between two sections
            sections.append([])
    message, *others = [lines for lines in sections if lines] or [["the options cannot be read"]]
    near = next((lines[1] for lines in others if lines[0].startswith("Perhaps you meant") and lines[1:]), None)
    return " ".join(message) + (f" (perhaps you meant {near})" if near else "")


def train_command(args: Sequence[str]) -> None:
    """train PRESET [--intervention NAME] ...: run GRPO, evaluate, leave a run folder (printed last)."""
    from vgrout.presets import PRESETS

    if not args or args[0].startswith("-"):
        if args and args[0] in ("-h", "--help"):
            print("usage: vgrout train PRESET [--intervention NAME] [--NAME.setting VALUE] [OPTIONS]\n")
            for name, build in PRESETS.items():
                print(f"  {name:8} {(build.__doc__ or '').splitlines()[0]}")
            print("\n`vgrout train PRESET --help` lists every option with its default in that preset.")
            return
        raise UserError(f"vgrout train: expected a preset first, one of {', '.join(PRESETS)}")
    config = parse_run(args[0], args[1:], f"vgrout train {args[0]}")
    from vgrout.train import train

    print(train(config))


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
        """Evaluates a run's adapter on held-out problems, in the views base, full and deploy.

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
        sandbox_allow_missing: tuple[str, ...] = (),
    ) -> None:
        """Grades responses against problems and writes one verdict row per response.

        Args:
            problems: Problem rows, .jsonl or .jsonl.gz.
            responses: Rows with id, problem_id, mode, response and optionally markers (train or eval).
            out: File that receives the verdict rows (.gz to compress).
            workers: Grader processes; none: one per core.
            sandbox_allow_missing: Sandbox layers that this machine may lack.
        """
        with Progress("grading") as bar:
            summary = grade_files(
                problems, responses, out, workers=workers, allow_missing=sandbox_allow_missing, progress=bar.update
            )
        print(summary)

    call(grade, args, "vgrout grade")


def data_command(args: Sequence[str]) -> None:
    """data convert IN --out OUT: LeetCodeDataset rows to problem rows."""
    from vgrout.env.convert import convert_leetcode_dataset
    from vgrout.run.progress import Progress

    def convert(source: Annotated[Path, tyro.conf.Positional], out: Path, limit: int | None = None) -> None:
        """Converts LeetCodeDataset rows (v0.2) to problem rows; refused rows are listed with their reason.

        Args:
            source: LeetCodeDataset .jsonl or .jsonl.gz file.
            out: Problem file to write.
            limit: Convert only the first rows.
        """
        with Progress("converting") as bar:
            report = convert_leetcode_dataset(source, out, limit=limit, progress=bar.update)
        for row, reason in report.refused:
            print(f"refused {row}: {reason}")
        print(f"{report.converted} problems with {report.asserts} asserts, {len(report.refused)} rows refused: {out}")

    if not args or args[0] != "convert":
        raise UserError("vgrout data: expected the verb convert, as in `vgrout data convert IN --out OUT`")
    call(convert, args[1:], "vgrout data convert")


def direction_command(args: Sequence[str]) -> None:
    """direction extract | check PRESET ...: a direction from contrastive pairs, and what it is worth beside its placebos."""
    from vgrout.direction_check import check_direction, extract_direction
    from vgrout.directions.options import CheckOptions, ExtractOptions
    from vgrout.presets import PRESETS

    verbs = {"extract": (ExtractOptions, extract_direction), "check": (CheckOptions, check_direction)}
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
    if not args or args[0] not in verbs:
        raise UserError(
            f"vgrout micro: expected one of the verbs {', '.join(verbs)}, as in `vgrout micro base --seed 1`"
        )
    call(verbs[args[0]], args[1:], f"vgrout micro {args[0]}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train_command,
    "demo": demo_command,
    "eval": eval_command,
    "export": export_command,
    "grade": grade_command,
    "data": data_command,
    "direction": direction_command,
    "micro": micro_command,
}

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
