"""The presets are the specification's, cell by cell, except where they say that they depart, and why.

Invariants:
- every value of the table is a preset's own, or a departure declared with that value, the preset's own and a reason;
- the table below is the one of the specification, where its text is at hand;
- the variant that the table names is a preset, and differs from its own in that one value;
- defaults that hold everywhere hold for every intervention: adapter, learning rate of delta_s, router, gate, rival;
- docs/presets.md shows every value of every preset, and every departure with its reason.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from _gate import Gate, Skip, shared_folder
from vgrout.interventions import INTERVENTIONS
from vgrout.presets import DELTA_S_LR, DEPARTURES, PRESETS, preset

gate = Gate(__doc__)
PAGE = Path(__file__).parents[1] / "docs" / "presets.md"
NAMES = ("smoke", "micro", "lite", "fast", "full")
FILES = ("data/leetcode_train_medhard_filtered.jsonl", "data/leetcode_test_medhard.jsonl")
QWEN = "Qwen/Qwen3-"

# setting: its values in smoke, micro, lite, fast, full; rows that the specification has in one cell stand together.
TABLE: dict[str, tuple[Any, ...]] = {
    "model.name": ("tiny", "micro", QWEN + "0.6B", QWEN + "4B", QWEN + "4B"),
    "problems": ("builtin", "micro", *[FILES[0]] * 3),
    "eval_problems": (None, None, *[FILES[1]] * 3),
    "model.dtype": ("fp32", "fp32", "bf16", "bf16", "bf16"),
    "adapter.kind": ("lora2r",) * 5,
    "adapter.rank": (4, 8, 16, 32, 32),
    "steps": (6, 75, 60, 60, 200),
    "grpo.prompts_per_step": (2, 16, 4, 4, 16),
    "grpo.group_size": (4, 8, 8, 8, 16),
    "rollout.max_new": (24, 80, 768, 1024, 1536),
    "optim.lr": (1e-3, 7e-4, 3e-4, 3e-4, 7e-5),
    "optim.warmup_steps": (2, 5, None, None, 10),  # None: a fraction decides
    "optim.warmup_frac": (0.0, 0.0, 0.2, 0.2, 0.0),
    "optim.schedule": ("cosine",) * 5,
    "grpo.beta": (0.0, 1e-3, 1e-3, 1e-3, 1e-3),
    "rollout.temperature": (1.0, 1.0, 0.7, 0.7, 0.7),
    "rollout.top_p": (1.0, 1.0, 0.95, 0.95, 0.95),
    "rollout.top_k": (0, 0, 20, 20, 0),
    "env.unhackable_frac": (0.25, 0.5, 0.5, 0.5, 0.5),
    "rollout.rollout_ablate_frac": (0.25,) * 5,
    "rollout.mix_ratio": (0.5, 0.0, 0.125, 0.125, 0.0),  # smoke: 2 rows of 4
    "rollout.teacher_off_step": (None, None, 20, 30, None),
    "extraction.k_use": (4, 5, 5, 5, 5),
    "extraction.refresh_every": (2, 5, 5, 5, 5),
    "optim.betas": ((0.9, 0.99),) * 5,
    "optim.grad_clip": (1.0,) * 5,
    "optim.weight_decay": (0.1,) * 5,
    "grpo.clip": (0.2,) * 5,
    "eval.temperature": (0.7,) * 5,
    "eval.top_p": (0.95,) * 5,
    "checkpoint_every": (10,) * 5,  # of the specification's section 3.1
}


def value_of(config: Any, setting: str) -> Any:
    for part in setting.split("."):
        config = getattr(config, part)
    return config


@gate.invariant("every value is the specification's or a declared departure from it, and no departure is idle")
def _():
    assert tuple(PRESETS) == (*NAMES, "rebound") and set(DEPARTURES) <= set(NAMES), (tuple(PRESETS), set(DEPARTURES))
    compared, used = 0, set()
    for column, name in enumerate(NAMES):
        for setting, values in TABLE.items():
            specified = values[column]
            if setting == "optim.warmup_steps" and specified is None:
                continue
            for intervention in INTERVENTIONS:
                kind = "lora2r"  # of delta_s below
                own = value_of(preset(name, intervention, kind), setting)
                departure = DEPARTURES.get(name, {}).get(setting)
                if departure is None:
                    assert own == specified, (
                        f"{name} {intervention}: {setting} is {own}, the specification has {specified}"
                    )
                else:
                    used.add((name, setting))
                    assert departure.specified == specified != departure.value == own, (name, setting, departure, own)
                    assert len(departure.reason.split()) >= 5, (name, setting, departure.reason)
                compared += 1
    declared = {(name, setting) for name, found in DEPARTURES.items() for setting in found}
    assert declared == used, f"departures from what is not in the table: {declared - used}"
    return f"{compared} values, {len(used)} departures"


@gate.invariant("rebound is full with a KL of .04, and nothing else")
def _():
    for intervention in INTERVENTIONS:
        for kind in ("lora2r", "delta_s"):
            plain, own = (preset(name, intervention, kind) for name in ("full", "rebound"))
            changed = replace(plain, preset="rebound", grpo=replace(plain.grpo, beta=0.04))
            assert own == changed, (intervention, kind)
    assert "| `rebound` | `full` with `grpo.beta` .04" in PAGE.read_text(encoding="utf-8")
    return f"{len(INTERVENTIONS)} interventions"


@gate.invariant("the table is the one of the specification")
def _():
    spec = shared_folder().parent / "spec.md"
    if not spec.is_file():
        raise Skip(f"no {spec}")
    lines = re.findall(r"^\|(.+)\|$", spec.read_text(encoding="utf-8").partition("## 10.")[2], re.MULTILINE)
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")] for line in lines)}
    rows: dict[str, tuple[str, ...]] = {
        "steps, P, G, max_new": ("steps", "grpo.prompts_per_step", "grpo.group_size", "rollout.max_new"),
        "train T, top_p, top_k": ("rollout.temperature", "rollout.top_p", "rollout.top_k"),
        "KL beta": ("grpo.beta",),
        "unhackable_frac": ("env.unhackable_frac",),
        "rollout_ablate_frac (routed)": ("rollout.rollout_ablate_frac",),
        "k_use, refresh_every": ("extraction.k_use", "extraction.refresh_every"),
        "dtype": ("model.dtype",),
        "adapter, r per block": ("adapter.kind", "adapter.rank"),
    }
    compared = 0
    for row, settings in rows.items():
        for column in range(5):
            words = [w.strip() for w in re.sub(r"\(.*\)", "", cells[row][column]).split(",")]
            for setting, word in zip(settings, words, strict=True):
                ours = TABLE[setting][column]
                same = word == ours if isinstance(ours, str) else float(word) == ours
                assert same, f"{row}, {NAMES[column]}: the specification has {word}, the gate {ours}"
                compared += 1
    for column, name in enumerate(NAMES):
        rate, *rest = (w.strip() for w in cells["lr, schedule"][column].split(","))
        assert float(rate) == TABLE["optim.lr"][column], (name, rate)
        number = float(re.findall(r"\.?\d+", rest[0])[0])
        assert number in (TABLE["optim.warmup_steps"][column], TABLE["optim.warmup_frac"][column]), (name, rest)
        mix = [float(w) for w in re.findall(r"\.?\d+", cells["teacher mix, off step"][column])]
        share, off = TABLE["rollout.mix_ratio"][column], TABLE["rollout.teacher_off_step"][column]
        expected = [share * TABLE["grpo.group_size"][column]] if name == "smoke" else [share, off] if share else []
        assert mix == expected, (name, mix, expected)
    variant = re.search(r"\(`(\w+)` variant (\.\d+)\)", cells["KL beta"][NAMES.index("full")])
    assert variant and preset(variant[1], "none").grpo.beta == float(variant[2]), cells["KL beta"]
    return f"{compared + 11} cells"


@gate.invariant("the defaults of adapters, gates, router and rival hold in every preset")
def _():
    for name in NAMES:
        for intervention, cls in INTERVENTIONS.items():
            config = preset(name, intervention)
            assert config.adapter.kind == ("delta_s" if intervention == "erase" else "lora2r"), (name, intervention)
            assert cls.default_adapter == config.adapter.kind, intervention
            assert _strategy(config.settings) == "gradient", (name, intervention)
        assert preset(name, "erase").optim.lr == DELTA_S_LR[name], name
        assert preset(name, "advantage_mod").settings.alpha == 2.0, name
        routed = preset(name, "routeV").settings
        assert (routed.clean, routed.mask) == ("detached", "parameter"), name
        assert preset(name, "moe").settings.soft == "detached", name
        assert preset(name, "absorb").grpo.advantage_baseline == "block", name
    assert _strategy(preset("micro", "moe").settings.__class__(soft="published")) == "forward"
    return f"{len(NAMES)} presets x {len(INTERVENTIONS)} interventions"


@gate.invariant("docs/presets.md shows every value of every preset and every departure with its reason")
def _():
    text = PAGE.read_text(encoding="utf-8")
    rows = 0
    for setting in TABLE:
        shown = " | ".join(_shown(value_of(preset(name, "none"), setting)) for name in NAMES)
        assert f"| `{setting}` | {shown} |" in text, f"docs/presets.md lacks: | `{setting}` | {shown} |"
        rows += 1
    assert "| update strategy | gradient | gradient | gradient | gradient | gradient |" in text, "update strategy"
    for name, found in DEPARTURES.items():
        for setting, d in found.items():
            line = f"| `{name}` | `{setting}` | {_shown(d.specified)} | {_shown(d.value)} | {d.reason} |"
            assert line in text, f"docs/presets.md lacks: {line}"
            rows += 1
    return f"{rows} rows"


def _strategy(settings: Any) -> str:
    """`forward` where an intervention's settings ask for another forward than the sampling one."""
    own_graph = {"mask": "activation", "clean": "zeroed", "soft": "published", "feature": "nll"}
    return "forward" if any(getattr(settings, name, None) == value for name, value in own_graph.items()) else "gradient"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value).replace("data/leetcode_", "").replace(".jsonl", "")


if __name__ == "__main__":
    gate.main()
