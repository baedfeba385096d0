"""`vgrout train PRESET --dry-run`: what it says is what a run does, and it costs nothing.

Invariants:
- a dry run loads no weights, opens no connection and writes nothing, for every preset and intervention, and marks every
  setting that differs from the preset;
- a missing problem file or an unknown shape is said with its remedy, and the rest is reported;
- what an update keeps of its backward is what the intervention asks for;
- what the run would refuse, its dry run refuses; a run of teacher rows alone has an estimate as well;
- the rollouts, checkpoints and answers that it announces are those of a real run.
"""

from __future__ import annotations

import functools
import json
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from transformers import PreTrainedTokenizerFast

from _cli import FOLDER, finished_run, run
from _gate import Gate
from vgrout.adapter.base import Adapter
from vgrout.directions.live import LiveDirection
from vgrout.directions.placebo import Source
from vgrout.dry_run import flat
from vgrout.interventions import INTERVENTIONS
from vgrout.interventions.routeV import RouteV
from vgrout.models.tiny import SIZES, shipped_texts, train_tokenizer
from vgrout.plan import needs_of
from vgrout.presets import preset, with_options

gate = Gate(__doc__)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """That of the model `tiny`, made once."""
    return train_tokenizer(shipped_texts(), SIZES["tiny"].vocab)


@gate.invariant("what an update keeps is what the intervention asks for")
def _():
    cells = 0
    for kind in ("lora2r", "delta_s"):
        for options in (
            {},
            {"feature": "nll"},
            {"unit": "rollout"},
            {"feature": "raw", "mask": "activation", "action": "three_way"},
        ):
            for source in ("real", "random_label"):
                config = preset("smoke", "routeV", kind)
                config = with_options(config, {f"settings.{k}": v for k, v in options.items()} | {"direction": source})
                adapter: Any = object.__new__(Adapter)
                adapter.kind = kind
                direction: Any = object.__new__(LiveDirection)
                direction.extractor = SimpleNamespace(source=Source(source))
                routed = RouteV(config.settings, adapter, 0)
                try:
                    routed.prepare(direction)
                except Exception as error:  # noqa: BLE001 - a cell that is refused keeps nothing
                    assert type(error).__name__ == "UserError", error
                    continue
                assert routed.needs == needs_of(config), (kind, options, source, routed.needs, needs_of(config))
                cells += 1
    assert cells >= 10, cells
    return f"{cells} cells of routeV; the other classes declare it"


@contextmanager
def no_resources() -> Generator[None]:
    """Weights, connections and files are out of reach."""

    def refuse(*args: Any, **named: Any) -> Any:
        raise AssertionError(f"a dry run asked for {args[:2]}")

    with (
        mock.patch("vgrout.inputs.load_model", refuse),
        mock.patch("vgrout.models.load.load_model", refuse),
        mock.patch("vgrout.models.tiny.random_qwen3", refuse),
        mock.patch("vgrout.plan.train_tokenizer", lambda *args: tokenizer()),
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(Path, "mkdir", refuse),
    ):
        yield


def dry(*arguments: str) -> str:
    out = FOLDER / "dry"
    with no_resources():
        code, text, err = run("train", *arguments, "--dry-run", "--out", str(out))
    assert code == 0 and not err, (arguments, code, err)
    assert not out.exists(), f"{arguments}: left {out}"
    return text


@gate.invariant("a dry run loads, opens and writes nothing, and marks every setting that differs from the preset")
def _():
    return _dry_runs([("smoke", "none"), ("micro", "routeV"), ("full", "label_route")])


@gate.invariant("the same for every other preset and intervention", slow=True)
def _():
    return _dry_runs(
        [("smoke", name) for name in INTERVENTIONS if name != "none"] + [("lite", "erase"), ("fast", "moe")]
    )


def _dry_runs(asked: list[tuple[str, str]]) -> str:
    bound = [name for name, cls in INTERVENTIONS.items() if cls.oracle]
    for name, intervention in asked:
        text = dry(name, "--intervention", intervention, "--allow-oracle", "--grpo.clip", "0.3")
        marked = re.findall(r"^\* (\S+)", text, re.MULTILINE)
        assert marked == ["allow_oracle", "out", "grpo.clip"], (name, intervention, marked)
        shown = re.findall(r"^[* ] ([a-zA-Z_.]+) ", text.split("\nproblems\n")[0], re.MULTILINE)
        assert set(shown) == set(flat(preset(name, intervention).to_dict())), (name, intervention)
        assert "PEAK" in text and ("UPPER BOUND" in text) == (intervention in bound), text
    return f"{len(asked)} presets and interventions"


@gate.invariant("a missing problem file and an unknown shape are said with their remedy, and the rest is reported")
def _():
    text = dry("full", "--intervention", "none")
    assert "no such file" in text and "vgrout data fetch" in text and "PEAK" in text, text
    unknown = dry("smoke", "--model.name", "someone/some-model")
    assert "its shape is not written down here" in unknown and "--model.name a local folder" in unknown, unknown
    assert "hint" in unknown and "rollouts" in unknown, unknown
    return "both"


@gate.invariant("with teacher rows alone nothing is sampled, and the estimate says so")
def _():
    text = dry("smoke", "--intervention", "routeV", "--rollout.mix-ratio", "1")
    assert "0 sampled in view full, 0 in view deploy, 4 of the teacher pool" in text, text
    assert "0 rollouts, 0 tokens at most" in text and "PEAK" in text, text
    return "mix ratio 1"


@gate.invariant("what the run would refuse, its dry run refuses too")
def _():
    mistakes = (
        (("--intervention", "routeA", "--adapter.kind", "delta_s"), "lora2r"),
        (("--intervention", "moe", "--adapter.kind", "delta_s"), "lora2r"),
        (("--env.modes", "foo"), "mode 'foo'"),
        (("--intervention", "erase", "--pairs", "nosuch"), "nosuch"),
        (("--rollout.pool", "/nosuch.jsonl"), "/nosuch.jsonl"),
        (("--adapter.rank", "0"), "--adapter.rank 0"),
        (("--eval.markers", "train", "train"), "--eval.markers train train"),
        (("--eval.views", "deploy", "deploy"), "--eval.views deploy deploy"),
    )
    for options, says in mistakes:
        code, _, err = run("train", "smoke", *options, "--dry-run")
        assert code == 2 and says in err, (options, code, err)
    return f"{len(mistakes)} mistakes"


@gate.invariant("the rollouts, checkpoints and answers announced are those of a real run", slow=True)
def _():
    done = finished_run("none")
    config = json.loads((done / "config.json").read_text())
    text = dry("smoke", "--steps", "1", "--eval.problems", "1", "--eval.no-free-prompts", "--allow-oracle")
    metrics = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == config["steps"] == 1
    rollouts_said = int(re.search(r"= ([\d,]+) rollouts", text)[1].replace(",", ""))  # ty: ignore[not-subscriptable]
    assert rollouts_said == config["grpo"]["prompts_per_step"] * config["grpo"]["group_size"], rollouts_said
    answers = sum(int(n.replace(",", "")) for n in re.findall(r"= ([\d,]+) answers", text))
    rows = json.loads((done / "eval.json").read_text())["rows"]
    assert answers == len(rows), (answers, len(rows))
    files = list((done / "checkpoints").glob("ckpt_*"))
    said = int(re.search(r"checkpoints\n  (\d+) files of", text)[1])  # ty: ignore[not-subscriptable]
    assert said - 1 <= len(files) <= said, (said, files)
    return f"{rollouts_said} rollouts, {answers} answers, {len(files)} of at most {said} checkpoints"


if __name__ == "__main__":
    gate.main()
