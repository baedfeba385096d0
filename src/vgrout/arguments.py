"""Command line arguments to configurations and calls; a mistake in them is a `UserError` of one line."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vgrout.types import UserError

if TYPE_CHECKING:
    from vgrout.config import RunConfig


def parse_run(name: str, args: Sequence[str], prog: str) -> Any:
    """The preset's configuration with the command line's overrides.

    The intervention is read first, because its name decides which settings exist (`--NAME.setting`), and the adapter,
    because it decides the preset's learning rate.
    """
    from vgrout.interventions import INTERVENTIONS
    from vgrout.presets import design_named, preset

    design = option(args, "--design", default="") or None
    intervention = option(args, "--intervention", default=design_named(design).intervention if design else "none")
    if not intervention or intervention.startswith("-"):
        raise UserError(f"--intervention: expected a name behind it, one of {', '.join(INTERVENTIONS)}")
    default = preset(name, intervention, option(args, "--adapter.kind", default="") or None, design)
    return _parsed(default, args, prog)


def parse_changes(stored: RunConfig[Any], args: Sequence[str], prog: str) -> Any:
    """A run's own configuration with the command line's changes. `UserError` for a preset that is not the run's."""
    if args and not args[0].startswith("-"):
        if args[0] != stored.preset:
            raise UserError(f"{prog}: preset is {stored.preset} in the run, asked for is {args[0]}; leave it out")
        args = args[1:]
    return _parsed(stored, args, prog)


def _parsed(default: RunConfig[Any], args: Sequence[str], prog: str) -> Any:
    from vgrout.config import RunConfig
    from vgrout.interventions import INTERVENTIONS, intervention_class, option_name

    cls, own = intervention_class(default.intervention), option_name(default.intervention)
    if own in RunConfig.__dataclass_fields__:
        raise UserError(
            f"--intervention {default.intervention}: the options --{own} are others'; give the class another name"
        )
    settings: Any = Annotated[cls.Settings, tyro.conf.arg(name=own)]  # ty: ignore[invalid-type-form]
    description = (
        f"Trains with one of the interventions {', '.join(INTERVENTIONS)}, whose settings are --NAME.setting, or with a "
        "class of your own, MODULE:CLASS, whose settings are --CLASS.setting."
    )
    return parse(RunConfig[settings], args, prog, default=default, description=description)


def without(args: Sequence[str], *flags: str, values: bool = False) -> list[str]:
    """The arguments without these flags, and without what stands behind each where `values`."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if skip or arg in flags or (values and arg.startswith(tuple(f"{flag}=" for flag in flags))):
            skip = values and arg in flags and not skip
        else:
            kept.append(arg)
    return kept


def option(args: Sequence[str], flag: str, *, default: str) -> str:
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
