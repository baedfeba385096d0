"""Configuration: what is declared is read, what is unknown is refused, what is stored comes back.

Invariants:
- every field of every configuration dataclass has a reader outside the place that declares it;
- a stored configuration is rebuilt exactly, for every preset and intervention;
- an unknown or missing setting is refused by name;
- the presets hold the values of the specification's table, where the table speaks of what is built;
- an intervention's settings exist on the command line only under that intervention.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _gate import Gate, refusal
from vgrout.arguments import parse_run
from vgrout.config import RunConfig, from_dict
from vgrout.interventions import INTERVENTIONS
from vgrout.presets import DELTA_S_LR, PRESETS, preset
from vgrout.types import UserError

gate = Gate(__doc__)
SOURCE = Path(__file__).parents[1] / "src" / "vgrout"


def config_classes() -> set[Any]:
    """RunConfig, the dataclasses it is composed of, and every intervention's settings."""
    found: set[Any] = set()
    for name in INTERVENTIONS:
        pending: list[object] = [preset("smoke", name)]
        while pending:
            value = pending.pop()
            found.add(type(value))
            inner = (getattr(value, f.name) for f in dataclasses.fields(value))  # ty: ignore[invalid-argument-type]
            pending += [v for v in inner if dataclasses.is_dataclass(v)]
    return found


def attributes_read() -> dict[str, int]:
    """How often each attribute name is loaded in the package, `self.x` inside a dataclass's own check left out."""
    counts: dict[str, int] = {}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name in ("__post_init__", "to_dict")
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in own:
                counts[node.attr] = counts.get(node.attr, 0) + 1
    return counts


@gate.invariant("every configuration field has a reader")
def _():
    read = attributes_read()
    classes: set[Any] = config_classes()
    fields = [(cls.__name__, f.name) for cls in classes for f in dataclasses.fields(cls)]
    unread = [f"{cls}.{name}" for cls, name in fields if name not in read]
    assert not unread, f"declared but never read: {unread}"
    assert len(fields) > 40, f"only {len(fields)} fields were found: the search is broken"
    return f"{len(fields)} fields of {len(classes)} dataclasses"


@gate.invariant("a stored configuration comes back exactly")
def _():
    pairs = [(p, i) for p in PRESETS for i in INTERVENTIONS]
    for name, intervention in pairs:
        config = preset(name, intervention)
        assert from_dict(json.loads(json.dumps(config.to_dict()))) == config, (name, intervention)
    return f"{len(pairs)} preset x intervention pairs"


@gate.invariant("an unknown or missing setting is refused by name")
def _():
    good = preset("smoke", "label_route").to_dict()
    cases = {
        "extra": lambda c: c["grpo"].update(extra=1),
        "beta": lambda c: c["grpo"].pop("beta"),
        "recall": lambda c: c["settings"].pop("recall"),
    }
    for name, spoil in cases.items():
        bad = json.loads(json.dumps(good))
        spoil(bad)
        try:
            from_dict(bad)
        except UserError as error:
            assert name in str(error), error
        else:
            raise AssertionError(f"a configuration with a spoilt {name} was accepted")
    return f"{len(cases)} spoilt configurations refused"


@gate.invariant("presets hold the specification's values")
def _():
    table = {
        # steps, P, G, max_new, rank, lr, beta, temperature, top_p, top_k, unhackable, ablate
        "smoke": (6, 2, 4, 24, 4, 1e-3, 0.0, 1.0, 1.0, 0, 0.25, 0.25),
        "lite": (60, 4, 8, 768, 16, 3e-4, 1e-3, 0.7, 0.95, 20, 0.5, 0.25),
        "fast": (60, 4, 8, 1024, 32, 3e-4, 1e-3, 0.7, 0.95, 20, 0.5, 0.25),
        "full": (200, 16, 16, 1536, 32, 7e-5, 1e-3, 0.7, 0.95, 0, 0.5, 0.25),
    }
    warmup = {"smoke": (2, 0.0), "lite": (None, 0.2), "fast": (None, 0.2), "full": (10, 0.0)}
    teacher = {"smoke": (2, None), "lite": (1, 20), "fast": (1, 30), "full": (0, None)}
    for name, expected in table.items():
        c: RunConfig = preset(name, "none")
        r, g = c.rollout, c.grpo
        got = (c.steps, g.prompts_per_step, g.group_size, r.max_new, c.adapter.rank, c.optim.lr, g.beta)
        got += (r.temperature, r.top_p, r.top_k, c.env.unhackable_frac, r.rollout_ablate_frac)
        assert got == expected, f"{name}: {got} instead of {expected}"
        steps, fraction = warmup[name]
        assert c.optim.warmup_frac == fraction and (steps is None or c.optim.warmup_steps == steps), name
        assert (round(r.mix_ratio * g.group_size), r.teacher_off_step) == teacher[name], name
        everywhere = (c.optim.betas, c.optim.grad_clip, c.optim.weight_decay, g.clip, c.eval.temperature, c.eval.top_p)
        assert everywhere == ((0.9, 0.99), 1.0, 0.1, 0.2, 0.7, 0.95), f"{name}: {everywhere}"
        erase = preset(name, "erase")
        assert erase.adapter.kind == "delta_s" and erase.optim.lr == DELTA_S_LR[name] != c.optim.lr, name
        assert preset(name, "erase", "lora2r").optim == c.optim and c.adapter.kind == "lora2r", name
        e = c.extraction
        assert (e.top_k, e.noise_floor, e.k_use, e.refresh_every) == (
            12,
            0.25,
            *((4, 2) if name == "smoke" else (5, 5)),
        )
    return f"{len(table)} presets, 26 values each"


@gate.invariant("a design brings its intervention, adapter and settings, and the command line still overrides them")
def _():
    config = parse_run("micro", ["--design", "vhack-v2"], "vgrout")
    e = config.extraction
    assert (config.intervention, config.design, config.adapter.kind) == ("erase", "vhack-v2", "delta_s"), config
    assert (config.settings.susp_drop_frac, e.top_k, e.noise_floor, e.refresh_every) == (0.25, 12, 0.0, 0), config
    other = parse_run(
        "micro", ["--design=vhack-v2", "--adapter.kind", "lora2r", "--erase.susp-drop-frac", "0.5"], "vgrout"
    )
    assert (other.settings.susp_drop_frac, other.adapter.kind, other.optim.lr) == (0.5, "lora2r", 1e-3), other
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert "vhack-v2" in refusal(lambda: parse_run("micro", ["--design", "v9"], "vgrout"))
    assert "erase" in refusal(
        lambda: parse_run("micro", ["--design", "vhack-v2", "--intervention", "absorb"], "vgrout")
    )
    assert "delta_s" in refusal(lambda: parse_run("micro", ["--adapter.kind", "lora3r"], "vgrout"))
    return "vhack-v2 on delta_s and on lora2r; 3 refusals"


@gate.invariant("settings exist only under their own intervention")
def _():
    config = parse_run("smoke", ["--intervention", "label_route", "--label_route.recall", "0.5"], "vgrout")
    assert config.settings.recall == 0.5
    command = [
        sys.executable,
        "-m",
        "vgrout.cli",
        "train",
        "smoke",
        "--intervention",
        "none",
        "--label_route.recall",
        "1",
    ]
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode != 0 and "label_route.recall" in (other.stdout + other.stderr).replace("-", "_"), (
        other.stderr
    )
    return "--label_route.recall read under label_route, refused under none"


if __name__ == "__main__":
    gate.main()
