"""A whole run's configuration: the owners' dataclasses composed. Presets are in `vgrout.presets`.

Every field has a reader (a gate checks it), unknown settings stop the program, and `config.json` in a run folder holds
the resolved values. An intervention's own settings are the field `settings`, of the type that the intervention declares.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints

import tyro
from beartype.door import is_bearable

from vgrout.adapter import AdapterConfig
from vgrout.directions.config import ExtractionConfig
from vgrout.directions.placebo import parse_source
from vgrout.env.inoculation import inoculation_named
from vgrout.env.modes import LOOPHOLES, mode_named
from vgrout.grpo import GrpoConfig
from vgrout.interventions import intervention_class
from vgrout.optim import OptimConfig
from vgrout.tripwires import TripwireConfig
from vgrout.types import Markers, UserError, View

Settings = TypeVar("Settings")
MAX_SEED = 2**63 - 1
"""Torch's generators take no larger one."""
MAX_INIT_SEED = 2**40
"""The adapter multiplies its seed, so that the modules of neighbouring seeds differ."""


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    name: str = "tiny"
    """Hub id, local folder, micro (the trained micro base that ships), or tiny / tiny:a / tiny:b (random weights)."""
    revision: str | None = None
    """Commit on the hub."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Type of the frozen weights and of activations; the adapter is fp32 in either case."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of a tiny model's random weights; pretrained models have none."""
    threads: int | None = None
    """Threads of torch on the CPU; none: torch's own choice. A tiny model is fastest, and exactly repeatable, with 1."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--model.threads {self.threads}: expected at least 1, or none")


@dataclass(frozen=True)
class EnvConfig:
    """Prompts, loophole modes and the grader."""

    modes: tuple[str, ...] = LOOPHOLES
    """Loophole modes that the training problems are divided among, evenly."""
    unhackable_frac: float = 0.5
    """Share of prompts shown without a hint and graded by ground truth alone; drawn anew each step."""
    inoculation: str | None = None
    """Text added to the system turn of training prompts and to no evaluation prompt: pass_test, eval_environment or loophole."""
    max_prompt_tokens: int = 1536
    """Longest prompt that is accepted, in tokens; a longer one stops the run before it starts."""
    workers: int | None = None
    """Grader processes; none: one per core."""
    sandbox_allow_missing: tuple[str, ...] = ()
    """Sandbox layers that this machine may lack; each is named in every verdict."""
    sandbox_namespaces: bool = False
    """Wrap the sandbox in namespaces of its own as well, where the machine lets an ordinary user make them."""

    def __post_init__(self) -> None:
        if self.inoculation is not None:
            inoculation_named(self.inoculation)
        for mode in self.modes:
            mode_named(mode)
        if (self.workers is not None and self.workers < 1) or self.max_prompt_tokens < 1:
            raise UserError(
                f"env: workers {self.workers} and max_prompt_tokens {self.max_prompt_tokens} must be at least 1"
            )


@dataclass(frozen=True)
class RolloutConfig:
    """How rollouts are sampled, and the teacher rows among them."""

    max_new: int = 1536
    """Tokens of a completion at most; also the T of the loss's fixed denominator."""
    temperature: float = 0.7
    """Sampling temperature in training."""
    top_p: float = 0.95
    """Nucleus sampling in training; 1 is off."""
    top_k: int = 0
    """Top-k sampling in training; 0 is off."""
    rollout_ablate_frac: float = 0.25
    """Share of a group sampled in the deploy view (routed interventions); 0 and 0.5 are known to collapse."""
    mix_ratio: float = 0.0
    """Share of a group taken from the teacher pool; rounded half up."""
    pool: str = "demonstrations"
    """Teacher pool: demonstrations (right, wrong and hacking answers made from the problem rows) or a .jsonl(.gz) file."""
    teacher_off_step: int | None = None
    """First step without teacher rows; none keeps them to the end."""
    teacher_modes: tuple[str, ...] | None = None
    """Modes that get teacher rows; none: all of them."""
    max_rows: int | None = None
    """Rows decoded together at most; none: all rows of a view."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"--rollout.temperature {self.temperature}: training samples need a positive temperature")
        if self.max_rows is not None and self.max_rows < 1:
            raise UserError(f"--rollout.max_rows {self.max_rows}: expected at least 1, or none")
        for mode in self.teacher_modes or ():
            mode_named(mode)


@dataclass(frozen=True)
class EvalConfig:
    """The deploy evaluation, the same for every intervention."""

    problems: int | None = None
    """Held-out problems evaluated at the end (the first N); none: all of them."""
    train_problems: int | None = None
    """Training problems that are also shown at the end, under their own modes with train markers, to full and deploy: at
    most so many, chosen by a hash of their ids; none: as many as held-out problems are evaluated; 0 leaves them out."""
    samples: int = 1
    """Completions per prompt and view of the final evaluation; intervals are over problems."""
    temperature: float = 0.7
    """Sampling temperature."""
    top_p: float = 0.95
    """Nucleus sampling."""
    max_new: int | None = None
    """Tokens of a completion at most; none: as in training."""
    views: tuple[View, ...] = ("base", "full", "deploy")
    """Views that are evaluated: without the adapter, with both blocks, quarantine-ablated (and the two of `controls`)."""
    controls: bool = True
    """Routed interventions: evaluate clean_ablated (the deployed block reset to its init) and random_removal (a random
    matrix of the quarantine's size subtracted) as well, and compare all three ablations."""
    removal_seed: int = 0
    """Seed of the matrices that random_removal subtracts."""
    markers: tuple[Markers, ...] = ("eval",)
    """Marker families that the hints are shown with; train shows what was learned, eval whether it generalises."""
    modes: tuple[str, ...] | None = None
    """Loophole modes of the held-out prompts; none: as in training. More of them show what is done to an unseen loophole."""
    free_prompts: bool = True
    """Show each problem a second time without its hint (gt_only), so that solving is also seen where no loophole is."""
    seed: int = 12345
    """Seed of the evaluation's draws; training draws are untouched by it."""
    curve_every: int | None = None
    """Updates between the points of a curve on validation problems, in the views full and deploy; none: no curve."""
    curve_problems: int = 32
    """Validation problems of the curve at most, chosen by a hash of their ids."""
    curve_set: str | None = None
    """Where they come from: a file, micro:validation or another set's held-out part; none: micro:validation where training
    problems are micro, else at most a fifth of the training problems, which are then not trained on."""

    def __post_init__(self) -> None:
        for mode in self.modes or ():
            mode_named(mode)
        if self.samples < 1 or (self.problems is not None and self.problems < 1):
            raise UserError(f"eval: samples {self.samples} and problems {self.problems} must be at least 1")
        if self.train_problems is not None and self.train_problems < 0:
            raise UserError(
                f"--eval.train-problems {self.train_problems}: expected 0 (none of them), a number, or none"
            )
        if self.curve_problems < 1 or (self.curve_every is not None and self.curve_every < 1):
            raise UserError(
                f"eval: curve_every {self.curve_every} and curve_problems {self.curve_problems} must be at least 1"
            )
        if self.curve_set is not None and self.curve_every is None:
            raise UserError(f"--eval.curve-set {self.curve_set}: there is no curve; add --eval.curve-every N")
        for name, given in (("views", self.views), ("markers", self.markers)):
            if not given or len(set(given)) < len(given):
                raise UserError(f"--eval.{name} {' '.join(given)}: expected at least one, and none twice")


@dataclass(frozen=True)
class RunConfig(Generic[Settings]):
    """Everything that decides a run."""

    preset: Annotated[str, tyro.conf.Suppress]
    """Name of the preset that the values started from."""
    settings: Settings
    """Settings of the intervention."""
    design: str | None = None
    """Published design whose settings stand in for the preset's: vhack-v2 (erase), v1-ramp and three-way-two-pass (routeV),
    live-quantile (routeA, routeV), evil-moe (moe). None: the preset as it is."""
    intervention: str = "none"
    """What is done about hacking; one of the names that `vgrout train --help` lists, or MODULE:CLASS of your own."""
    allow_oracle: bool = False
    """Allow an intervention that reads ground truth (an upper bound, marked in every output)."""
    seed: int = 0
    """Seed of draws, sampling and adapter-independent randomness."""
    steps: int = 200
    """Optimizer steps."""
    problems: str = "builtin"
    """Training problems: builtin, micro, or a .jsonl(.gz) file of benchmark rows (`vgrout data convert` makes one)."""
    eval_problems: str | None = None
    """Held-out problems: a file, builtin, micro (its test split) or micro:validation; none: the held-out part of the
    training problems' own set, or of the built-in set where they are a file."""
    pairs: str = "core"
    """Contrastive pairs: a shipped set or a .md file, then #HEADING-PREFIX and @TAG to choose among them; comma-joined."""
    direction: str = "real"
    """What the direction is made from: real (the pairs), a placebo (haar:SEED, shuffled:SEED, content:FILE), the
    trained control random_label (the gate's labels permuted), or oracle:FILE (labelled rollouts, an upper bound)."""
    out: Path = Path("out")
    """Folder that receives runs/NAME."""
    name: str | None = None
    """Name of the run folder; none: made from time, preset, intervention and seed."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""
    oracle_tuned_on: str | None = None
    """Where these settings were tuned on oracle-scored evaluations; stands in every table. None: nowhere."""
    model: ModelConfig = field(default_factory=ModelConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tripwires: TripwireConfig = field(default_factory=TripwireConfig)

    def __post_init__(self) -> None:
        intervention_class(self.intervention)
        parse_source(self.direction)
        if self.steps < 1 or self.checkpoint_every < 1:
            raise UserError(f"steps {self.steps} and checkpoint_every {self.checkpoint_every} must be at least 1")
        seeds = (
            ("seed", self.seed, MAX_SEED),
            ("model.seed", self.model.seed, MAX_SEED),
            ("adapter.init-seed", self.adapter.init_seed, MAX_INIT_SEED),
            ("eval.seed", self.eval.seed, MAX_SEED),
            ("eval.removal-seed", self.eval.removal_seed, MAX_SEED),
        )
        for option, seed, largest in seeds:
            if not 0 <= seed <= largest:
                raise UserError(f"--{option} {seed}: expected a whole number from 0 to {largest}")

    def require_oracle_permission(self) -> None:
        """Refuses an upper bound that was not asked for by name and by flag."""
        if self.upper_bound and not self.allow_oracle:
            cls = intervention_class(self.intervention)
            what = f"--intervention {self.intervention}" if cls.oracle else f"--direction {self.direction}"
            raise UserError(f"{what} reads ground truth, so it is an upper bound: allow it with --allow-oracle")

    @property
    def upper_bound(self) -> bool:
        """Whether ground truth reaches the updates by another way than the reward."""
        return intervention_class(self.intervention).oracle or parse_source(self.direction).upper_bound

    def to_dict(self) -> dict[str, Any]:
        """Plain data for config.json."""
        return _plain(dataclasses.asdict(self))


def from_dict(stored: dict[str, Any]) -> RunConfig[Any]:
    """The configuration that `to_dict` wrote; a setting that is unknown, missing or mistyped is a `UserError` with its name."""
    settings_type = intervention_class(str(stored.get("intervention"))).Settings
    return _build(RunConfig, stored, "config", settings=settings_type)


def _plain(value: Any) -> Any:
    """Paths as text, in any depth of settings."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _build(cls: Any, stored: object, where: str, **types: type) -> Any:
    if not isinstance(stored, dict):
        raise UserError(f"{where}: expected an object of settings, got {stored!r}; the file was edited")
    hints = {**get_type_hints(cls), **types}
    names = {f.name for f in dataclasses.fields(cls)}
    if stored.keys() != names:
        differing = sorted(stored.keys() ^ names)
        raise UserError(
            f"{where}: settings {differing} are unknown or missing; read it with the code revision that wrote it"
        )
    values = {}
    for name, value in stored.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = _build(hint, value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        elif hint in (Path, Path | None) and isinstance(value, str):
            value = Path(value)
        elif hint is float and type(value) is int:
            value = float(value)
        if not is_bearable(value, hint):
            expected = getattr(hint, "__name__", hint)
            raise UserError(f"{where}.{name}: expected {expected}, got {value!r}; the file was edited")
        values[name] = value
    return cls(**values)
