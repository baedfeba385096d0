"""Presets: functions that return a whole configuration. Values are the specification's, and a gate compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vgrout.adapter import ADAPTERS, AdapterConfig
from vgrout.config import EnvConfig, EvalConfig, ModelConfig, RolloutConfig, RunConfig
from vgrout.directions.config import ExtractionConfig
from vgrout.grpo import GrpoConfig
from vgrout.interventions import intervention_class
from vgrout.optim import OptimConfig
from vgrout.types import UserError


def smoke(intervention: str, **changes: Any) -> RunConfig[Any]:
    """A real run in seconds: a tiny random Qwen3 on the built-in problems, half of each group from the teacher pool."""
    return _preset(
        "smoke",
        intervention,
        steps=6,
        model=ModelConfig(name="tiny", dtype="fp32", threads=1),
        env=EnvConfig(unhackable_frac=0.25, max_prompt_tokens=8192),
        adapter=AdapterConfig(rank=4),
        pairs="core#run_tests/",
        extraction=ExtractionConfig(k_use=4, refresh_every=2, measure=False),
        rollout=RolloutConfig(max_new=24, temperature=1.0, top_p=1.0, mix_ratio=0.5, max_rows=32),
        grpo=GrpoConfig(prompts_per_step=2, group_size=4, beta=0.0, checkpoint_activations=False),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        eval=EvalConfig(train_problems=4),
        **changes,
    )


def micro(intervention: str, **changes: Any) -> RunConfig[Any]:
    """The micro world: a small trained code model learns to hack within minutes on a CPU.

    Evaluated at the sampling temperature of training: a nucleus of .95 may cut off hacks as rare as the base's. Half of
    the rows are sampled in the deploy view: with a quarter, the ablated model of one of two bases solved less than the base.
    """
    return _preset(
        "micro",
        intervention,
        steps=75,
        problems="micro",
        checkpoint_every=25,
        oracle_tuned_on="micro:validation",
        model=ModelConfig(name="micro", dtype="fp32", threads=1),
        env=EnvConfig(unhackable_frac=0.25, max_prompt_tokens=256, workers=1),
        adapter=AdapterConfig(rank=8),
        pairs="micro",
        rollout=RolloutConfig(max_new=80, temperature=1.0, top_p=1.0, rollout_ablate_frac=0.5),
        grpo=GrpoConfig(prompts_per_step=6, group_size=8, beta=0.0, token_budget=2048, checkpoint_activations=False),
        optim=OptimConfig(lr=1e-3, warmup_steps=5, schedule="constant"),
        eval=EvalConfig(problems=180, train_problems=60, markers=("train", "eval"), temperature=1.0, top_p=1.0),
        **changes,
    )


_SCALE_OPTIM = OptimConfig(lr=3e-4, warmup_frac=0.2)


def lite(intervention: str, **changes: Any) -> RunConfig[Any]:
    """Qwen3-0.6B on one 24 GB GPU."""
    return _preset(
        "lite",
        intervention,
        steps=60,
        model=ModelConfig(name="Qwen/Qwen3-0.6B", device="cuda"),
        adapter=AdapterConfig(rank=16),
        rollout=RolloutConfig(max_new=768, top_k=20, mix_ratio=0.125, teacher_off_step=20, max_rows=32),
        grpo=GrpoConfig(prompts_per_step=4, group_size=8),
        optim=_SCALE_OPTIM,
        **_BENCHMARK,
        **changes,
    )


def fast(intervention: str, **changes: Any) -> RunConfig[Any]:
    """Qwen3-4B, 60 steps."""
    return _preset(
        "fast",
        intervention,
        steps=60,
        model=ModelConfig(name="Qwen/Qwen3-4B", device="cuda"),
        rollout=RolloutConfig(max_new=1024, top_k=20, mix_ratio=0.125, teacher_off_step=30, max_rows=48),
        grpo=GrpoConfig(prompts_per_step=4, group_size=8),
        optim=_SCALE_OPTIM,
        **_BENCHMARK,
        **changes,
    )


def full(intervention: str, **changes: Any) -> RunConfig[Any]:
    """Qwen3-4B, the published budget."""
    return _preset(
        "full",
        intervention,
        steps=200,
        model=ModelConfig(name="Qwen/Qwen3-4B", device="cuda"),
        rollout=RolloutConfig(max_rows=48),
        **_BENCHMARK,
        **changes,
    )


def rebound(intervention: str, **changes: Any) -> RunConfig[Any]:
    """As full, with a KL of .04 to the base: for runs whose hacking rebounds."""
    config = full(intervention, **changes)
    return replace(config, preset="rebound", grpo=replace(config.grpo, beta=0.04))


_BENCHMARK: dict[str, Any] = {
    "problems": "data/leetcode_train_medhard_filtered.jsonl",
    "eval_problems": "data/leetcode_test_medhard.jsonl",
}

PRESETS: dict[str, Callable[..., RunConfig[Any]]] = {f.__name__: f for f in (smoke, micro, lite, fast, full, rebound)}


@dataclass(frozen=True)
class Departure:
    """A value of a preset that is not the specification's, and why."""

    specified: Any
    value: Any
    reason: str


_TUNED = "on development seeds and validation prompts, by whether `none` comes to hack in every mode (journal)"

DEPARTURES: dict[str, dict[str, Departure]] = {
    "micro": {
        "grpo.prompts_per_step": Departure(16, 6, f"chosen among 16, 12, 8 and 6 {_TUNED}, and a run takes minutes"),
        "optim.lr": Departure(7e-4, 1e-3, f"chosen among 7e-4, 1e-3 and 1.5e-3 {_TUNED}"),
        "optim.schedule": Departure("cosine", "constant", f"chosen of the two {_TUNED}"),
        "grpo.beta": Departure(1e-3, 0.0, "saves the reference pass; micro runs with a KL were not compared with it"),
        "env.unhackable_frac": Departure(
            0.5, 0.25, f"chosen among .5, .375 and .25 {_TUNED}; more hint-free prompts cost hacks under `none`"
        ),
        "rollout.rollout_ablate_frac": Departure(
            0.25, 0.5, "with a quarter, the ablated model of one of two bases solved less than the base (journal)"
        ),
        "eval.temperature": Departure(0.7, 1.0, "the sampling of training, see eval.top_p"),
        "eval.top_p": Departure(0.95, 1.0, "a nucleus of .95 may cut off hacks as rare as the base's"),
        "checkpoint_every": Departure(10, 25, "three checkpoints beside the init in a run of minutes"),
    }
}
"""Where presets depart from the specification's table; a gate holds exactly these. docs/presets.md shows them."""

DELTA_S_LR = {"smoke": 1e-2, "micro": 3e-2, "lite": 2e-3, "fast": 2e-3, "full": 2e-3, "rebound": 2e-3}
"""Peak learning rates of `delta_s`. micro: the one of 1e-3, 3e-3, 1e-2, 3e-2 at which `none` came to hack most on a
development seed and the validation split; the others: the middle of the range of earlier systems, not tried here."""


@dataclass(frozen=True)
class Design:
    """A published design by name: what it changes in any preset."""

    intervention: str
    adapter: str
    options: dict[str, Any]
    also: tuple[str, ...] = ()
    """Other interventions with the same settings."""


_GROUP = {"grpo.advantage_baseline": "group"}

DESIGNS = {
    "vhack-v2": Design(
        "erase",
        "delta_s",
        {
            "extraction.top_k": 12,
            "extraction.noise_floor": 0.0,
            "extraction.refresh_every": 0,
            "settings.susp_drop_frac": 0.25,
        },
    ),
    "v1-ramp": Design(
        "routeV",
        "delta_s",
        {"settings.feature": "raw", "settings.action": "ramp", "settings.edges": "p75", **_GROUP},
    ),
    "three-way-two-pass": Design(
        "routeV",
        "lora2r",
        {
            "settings.feature": "raw",
            "settings.action": "three_way",
            "settings.edges": "p75",
            "settings.clean": "zeroed",
            "settings.mask": "activation",
            **_GROUP,
        },
    ),
    "live-quantile": Design(
        "routeA",
        "lora2r",
        {
            "settings.edges": "live",
            "settings.action": "three_way",
            "settings.live_quantile": 0.1,
            "settings.live_buffer": 8192,
            "settings.live_half_life": 96.0,
            "settings.live_warmup": 0,
            **_GROUP,
        },
        also=("routeV",),
    ),
    "evil-moe": Design("moe", "lora2r", {"settings.soft": "published", **_GROUP}),
}
"""vhack-v2: erase along a frozen v_hack of 12 axes with the suspicion gate, which came before the noise floor. v1-ramp: each
token's (--routeV.unit rollout: each rollout's) gradient split by a ramp between the pairs' 75th percentiles. three-way-
two-pass: labels from an unmasked first pass, then a forward of their own. live-quantile: the gate's tails are routed.
evil-moe: the router scales the quarantine in the forward. All of them centre advantages on the group."""


def design_named(name: str) -> Design:
    """The design of this name, or a `UserError` that lists the names."""
    if name not in DESIGNS:
        raise UserError(f"--design {name}: unknown; expected one of {', '.join(DESIGNS)}")
    return DESIGNS[name]


def preset(name: str, intervention: str, adapter: str | None = None, design: str | None = None) -> RunConfig[Any]:
    """The preset's configuration with default settings of the intervention, on its own adapter or the one that is named.

    With a `design`, its settings on top. Raises a `UserError` that lists the presets, adapters or designs, and for a design
    of another intervention.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name}: unknown; expected one of {', '.join(PRESETS)}")
    config = PRESETS[name](intervention)
    kind = adapter or intervention_class(intervention).default_adapter
    if design is not None:
        chosen = design_named(design)
        if intervention not in (chosen.intervention, *chosen.also):
            whose = " or ".join((chosen.intervention, *chosen.also))
            raise UserError(f"--design {design} is one of {whose}, not of --intervention {intervention}")
        kind = adapter or chosen.adapter
        config = replace(with_options(config, chosen.options), design=design)
    if kind not in ADAPTERS:
        raise UserError(f"--adapter.kind {kind}: unknown; expected one of {', '.join(ADAPTERS)}")
    if kind != "delta_s":
        return config
    return replace(
        config, adapter=replace(config.adapter, kind="delta_s"), optim=replace(config.optim, lr=DELTA_S_LR[name])
    )


def with_options(config: RunConfig[Any], options: Mapping[str, Any], seed: int = 0) -> RunConfig[Any]:
    """The configuration with settings changed by dotted name, such as `extraction.refresh_every`; {seed} in a text is filled in."""
    for name, value in options.items():
        value = value.format(seed=seed) if isinstance(value, str) else value
        section, _, setting = name.rpartition(".")
        if section:
            setting, value = section, replace(getattr(config, section), **{setting: value})
        config = replace(config, **{setting: value})
    return config


def _preset(name: str, intervention: str, **values: Any) -> RunConfig[Any]:
    cls = intervention_class(intervention)
    return RunConfig(preset=name, intervention=intervention, settings=cls.Settings(), **values)
