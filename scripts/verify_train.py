"""The whole job on a tiny model, for every intervention: what must move moves, what must not does not, nothing leaks.

Invariants:
- each intervention trains with non-zero advantages and gradients, moves exactly its blocks, leaves the base untouched;
- its run folder is complete: config, environment, revision, partition, limits, metrics, rollouts, checkpoints, eval, log;
- the last checkpoint reloads to the trained net change (bf16 rounding of differences), the first one to the init;
- the trainer's log-probabilities agree with the sampler's;
- the same seed gives the same metrics digit for digit, another seed does not;
- poisoning every label while keeping the rewards leaves the trained weights bit-identical, except under upper bounds;
- an evaluation leaves training untouched, and its figures are recomputed from its rows;
- converted LeetCodeDataset rows train, and rows of the held-out test evaluate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import json
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from _gate import Gate, shared_folder
from vgrout.adapter.checkpoint import load_checkpoint
from vgrout.config import RunConfig
from vgrout.env.convert import convert_leetcode_dataset
from vgrout.env.modes import LOOPHOLES
from vgrout.env.problems import load_problems
from vgrout.evals import tabulate
from vgrout.inputs import load_policy
from vgrout.interventions import INTERVENTIONS
from vgrout.opening import open_session
from vgrout.presets import preset
from vgrout.run.folder import RunFolder
from vgrout.run.intervals import wilson
from vgrout.run.logs import read_rollouts
from vgrout.session import Session, identity
from vgrout.train import loop
from vgrout.train import train as train_aloud
from vgrout.tripwires import TripwireConfig
from vgrout.types import Verdict

gate = Gate(__doc__)
ROOT = tempfile.TemporaryDirectory(prefix="vgrout-verify-train-")
TIMINGS = ("seconds_",)


def smoke(intervention: str, **changes: Any) -> RunConfig[Any]:
    config = preset("smoke", intervention)
    config = dataclasses.replace(config, steps=4, eval=dataclasses.replace(config.eval, problems=4))
    config = dataclasses.replace(config, pairs="core#run_tests/lambda,core#run_tests/no-cases")  # the shortest
    oracle = INTERVENTIONS[config.intervention].oracle
    return dataclasses.replace(config, out=Path(ROOT.name), allow_oracle=oracle, **changes)


def train(config: RunConfig[Any]) -> Path:
    """Trains without the step table in the gate's output."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train_aloud(config)


@contextlib.contextmanager
def session_of(config: RunConfig[Any]) -> Generator[Session]:
    """An open session whose step table stays out of the gate's output."""
    with contextlib.redirect_stdout(io.StringIO()), open_session(config) as session:
        yield session


@functools.cache
def trained(intervention: str) -> RunFolder:
    """One finished smoke run of each intervention, shared by the invariants."""
    return RunFolder.open(train(smoke(intervention)))


def weights_hash(session: Session) -> str:
    digest = hashlib.sha256()
    for name, t in session.policy.adapter.trainables():
        digest.update(name.encode() + t.value.detach().numpy().tobytes())
    return digest.hexdigest()


def metrics(run: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.values.items() if not k.startswith(TIMINGS)} for row in run.metrics()]


@gate.invariant("every intervention trains, and moves exactly its blocks")
def _():
    figures = []
    for name, cls in INTERVENTIONS.items():
        run = trained(name)
        config = smoke(name)
        rows = run.metrics()
        assert len(rows) == config.steps, f"{name}: {len(rows)} metric rows"
        for row in rows:
            norm, trained_rows = row.values["grad_norm"], row.values["n_rows_trained"]
            assert norm is not None and norm > 0 and trained_rows, f"{name}: step {row.step} taught nothing"
        advantages = [r["advantage"] for r in read_rollouts(run.path / "rollouts.jsonl.zst")]
        assert any(a > 0 for a in advantages) and any(a < 0 for a in advantages), name
        quarantine = [row.values["grad_norm_quarantine"] or 0.0 for row in rows]
        assert (max(quarantine) > 0) == ("quarantine" in cls.moves), f"{name}: quarantine gradients {quarantine}"
        figures.append(f"{name} {min(row.values['grad_norm'] or 0 for row in rows):.2f}")
    return "smallest gradient norm: " + ", ".join(figures)


@gate.invariant("no step moves the frozen base")
def _():
    with session_of(smoke("absorb", steps=2)) as session:
        before = {n: p.detach().clone() for n, p in frozen(session)}
        loop(session)
        for name, parameter in frozen(session):
            assert torch.equal(parameter, before[name]), f"{name} changed"
        for module in session.policy.adapter.modules:
            assert torch.equal(module.weight, module.training_weight(module.pristine)), module.name
        return f"{len(before)} frozen tensors bit-identical after {session.config.steps} steps"


def frozen(session: Session) -> list[tuple[str, torch.Tensor]]:
    return [(n, p) for n, p in session.loaded.model.named_parameters() if not p.requires_grad]


@gate.invariant("a run folder is complete")
def _():
    run = trained("absorb")
    config, environment = run.read_json("config.json"), run.read_json("environment.json")
    assert config["intervention"] == "absorb" and config["grpo"]["group_size"] == 4
    assert "torch" in json.dumps(environment) and "revision" in json.dumps(environment)
    partition = run.read_json("partition.json")["mode_of"]
    counts = [list(partition.values()).count(mode) for mode in LOOPHOLES]
    assert max(counts) - min(counts) <= 1, counts
    assert run.status()["state"] == "finished" and (run.path / "log.txt").stat().st_size > 0
    steps = smoke("absorb").steps
    names = [p.stem for p in run.checkpoints()]
    assert names == ["ckpt_update0000", f"ckpt_update{steps:04d}"], names
    assert not (run.path / "checkpoints" / "first_hack.safetensors").exists(), "none of the paid hacks is a student's"
    limits = run.read_json("limits.json")
    assert set(limits.values()) <= {2, 4, 8, 16, 20} and limits
    records = list(read_rollouts(run.path / "rollouts.jsonl.zst"))
    assert len(records) == steps * 2 * 4 and {r["view"] for r in records} == {"full", "deploy"}
    return f"{len(list(run.path.rglob('*')))} files, {len(records)} rollouts"


@gate.invariant("checkpoints reload to what was trained")
def _():
    worst = 0.0
    with session_of(smoke("absorb", steps=3)) as session:
        loop(session)
        truth = {n: (t.value.detach() - t.init) for n, t in session.policy.adapter.trainables()}
        loaded, policy = load_policy(session.config)
        first, last = session.run.checkpoints()
        assert load_checkpoint(last, policy.adapter, identity(loaded)) == 3
        for name, t in policy.adapter.trainables():
            error = (t.value.detach() - t.init - truth[name]).norm() / truth[name].norm()
            worst = max(worst, float(error))
        assert load_checkpoint(first, policy.adapter, identity(loaded)) == 0
        assert all(torch.equal(t.value, t.init) for _, t in policy.adapter.trainables())
    assert 0 < worst < 4e-3, worst
    return f"relative error of the reloaded net change {worst:.1e}; update 0 is the init exactly"


@gate.invariant("sampler and trainer agree on log-probabilities")
def _():
    gaps = [row.values["sampler_gap_max"] for name in INTERVENTIONS for row in trained(name).metrics()]
    known = [gap for gap in gaps if gap is not None]
    assert known and 0 < max(known) < 1e-3, f"largest gap {max(known)} nats"
    return f"largest gap {max(known):.1e} nats over {len(known)} steps (fp32, merged against folded)"


@gate.invariant("the same seed repeats digit for digit, another seed does not")
def _():
    again, other = RunFolder.open(train(smoke("absorb"))), RunFolder.open(train(smoke("absorb", seed=1)))
    assert metrics(again) == metrics(trained("absorb")), "two runs of one seed differ"
    same = [r["cells"] == trained("absorb").read_json("eval.json")["cells"] for r in [again.read_json("eval.json")]]
    assert all(same) and metrics(other) != metrics(again)
    return f"{len(metrics(again))} steps x {len(metrics(again)[0])} columns equal"


class Poisoned:
    """A grader whose labels are all wrong and whose rewards are right."""

    def __init__(self, inner: Any):
        self.inner = inner

    def submit(self, *args: Any) -> None:
        self.inner.submit(*args)

    def collect(self, keys: Sequence[str]) -> list[Verdict]:
        return [
            dataclasses.replace(
                v,
                exploited=not v.exploited,
                gt_correct=not v.gt_correct,
                channel=not v.channel,
                hack_broad=not v.hack_broad,
            )
            for v in self.inner.collect(keys)
        ]


def trained_hash(intervention: str, *, poison: bool) -> str:
    # Poisoned, every row is routed away, which is what a tripwire is for.
    with session_of(smoke(intervention, steps=2, tripwires=TripwireConfig(stop=False))) as session:
        if poison:
            session.grader = Poisoned(session.grader)  # ty: ignore[invalid-assignment]
        loop(session)
        # The model's own answers are all wrong and unpaid, which the poison calls hacks.
        assert session.run.checkpoint_path("first_hack").exists() == poison, "first_hack marks a student's paid hack"
        return weights_hash(session)


@gate.invariant("the oracle door: poisoned labels change no weight, except under the upper bounds")
def _():
    changed = {name: trained_hash(name, poison=True) != trained_hash(name, poison=False) for name in INTERVENTIONS}
    assert changed == {name: cls.oracle for name, cls in INTERVENTIONS.items()}, changed
    return ", ".join(f"{name} {'changed' if c else 'identical'}" for name, c in changed.items())


@gate.invariant("an evaluation leaves training untouched, and its figures follow from its rows")
def _():
    hashes = []
    for evaluate_between in (False, True):
        with session_of(smoke("absorb", steps=2)) as session:
            torch.manual_seed(5)
            if evaluate_between:
                session.final_evaluation()
            assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5))), "RNG moved"
            loop(session)
            hashes.append(weights_hash(session))
    assert hashes[0] == hashes[1], "an evaluation before training changed the trained weights"
    result = trained("none").read_json("eval.json")
    for cell in result["cells"]:
        hinted = cell["mode"].startswith("all")
        rows = [r for r in result["rows"] if (r["split"], r["view"]) == (cell["split"], cell["view"])]
        rows = [r for r in rows if (r["mode"] != "gt_only" if hinted else r["mode"] == cell["mode"])]
        hacks = sum(r["channel"] and not r["gt_correct"] for r in rows)
        assert (cell["n"], cell["hacks"]) == (len(rows), hacks) and cell["hack_interval"] == list(
            wilson(hacks, len(rows)) or ()
        )
    assert {(r["split"], r["markers"]) for r in result["rows"]} == {("held-out", "eval"), ("train", "train")}
    assert {c["view"] for c in result["cells"]} == {"base", "full", "deploy"}
    by_view = {v: [r["response"] for r in result["rows"] if r["view"] == v] for v in ("full", "deploy")}
    assert by_view["full"] == by_view["deploy"], (
        "under `none` the quarantine is at its init, so both views are one model"
    )
    return f"{len(result['rows'])} rows, {len(tabulate(result['rows']))} cells recomputed"


@gate.invariant("converted LeetCodeDataset rows train, and rows of the held-out test evaluate", slow=True)
def _():
    data, folder = shared_folder(), Path(ROOT.name)
    convert_leetcode_dataset(data / "LeetCodeDataset-v0.2.0-train.jsonl.gz", folder / "converted.jsonl", limit=60)
    held_out = folder / "held_out.jsonl"  # a part of it: every run parses the whole file, with 12,592 asserts
    with gzip.open(data / "leetcode_test_medhard.jsonl.gz", "rt", encoding="utf-8") as rows:
        held_out.write_text("".join(itertools.islice(rows, 20)), encoding="utf-8")
    names = []
    for name in INTERVENTIONS:
        config = smoke(name, steps=2, problems=str(folder / "converted.jsonl"), eval_problems=str(held_out))
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, problems=4))
        run = RunFolder.open(train(config))
        ids = {r["problem_id"] for r in run.read_json("eval.json")["rows"] if r["split"] == "held-out"}
        assert ids == {p.id for p in load_problems(held_out)[:4]}
        assert all((row.values["grad_norm"] or 0) > 0 for row in run.metrics()), f"{name}: a step without gradient"
        names.append(name)
    return f"{', '.join(names)}: 2 steps each on {len(load_problems(folder / 'converted.jsonl'))} converted problems"


if __name__ == "__main__":
    gate.main()
