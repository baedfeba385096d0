"""Samplers and groups: rows are shared out exactly, under the right weights, and teacher rows know no labels.

Invariants
- a row is sampled with its own view's weights, whatever the views of the rows beside it; its text is the completion without the end token; its draws
  depend on seed, step and rollout id;
- every group has exactly G rows; teacher and deploy counts round half up for a whole table; order, ids and on_finish are
  right;
- teacher rows are chosen by (seed, step, problem, mode) whatever the labels say: without replacement, repeats counted;
- a malformed, missing, over-long or special-token row, and a setting out of range, is a one-line error that names it.
"""

from __future__ import annotations

import copy
import gzip
import json
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from transformers import PreTrainedModel

from _gate import Gate, shared_folder
from _tiny import prompt, refused, stops, tiny
from vgrout.adapter import Adapter, AdapterConfig, attach
from vgrout.models import decode_text, render_prompt
from vgrout.rollout import GroupPlan, GroupSampler, HFSampler, NoAdapter, PoolSampler, Request, SamplingParams
from vgrout.types import Group, View

gate = Gate(__doc__)


@cache
def adapted() -> tuple[PreTrainedModel, Adapter]:
    """A model whose views differ: both blocks have moved."""
    model = copy.deepcopy(tiny().model)
    adapter = attach(model, AdapterConfig(rank=4))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model, adapter


@gate.invariant("a row is sampled with its own view's weights, and its text is the completion without end token")
def _():
    (model, adapter), tokenizer = adapted(), tiny().tokenizer
    params, finished = SamplingParams(40), []
    views: list[View] = ["deploy", "full", "full", "base", "deploy", "full"] * 8
    requests = [Request(prompt(text=f"Task {i % 5}"), view, f"4/0/{i}") for i, view in enumerate(views)]
    with mock.patch("vgrout.rollout.hf.stop_ids", lambda model, tokenizer: stops(model)):
        together, thin = (HFSampler(model, tokenizer, adapter, params, 9, max_rows=most) for most in (None, 7))
        one_view = HFSampler(model, tokenizer, NoAdapter(), params, 9)
    rows = together.sample(requests, 4, finished.append)
    assert sorted(row.id for row in finished) == sorted(row.id for row in rows)
    assert [row.id for row in rows] == [request.rollout_id for request in requests]
    assert len({len(row.completion_ids) for row in rows}) > 5, "rows must end at different lengths"
    gap, other_views = 0.0, 0
    for view in ("deploy", "full", "base"):
        with adapter.merged(view):
            alone = one_view.sample(requests, 4)
        for request, row, same in zip(requests, rows, alone, strict=True):
            if request.view != view:
                other_views += row.completion_ids == same.completion_ids
                continue
            assert same.completion_ids == row.completion_ids and row.view == view and row.source == "student"
            gap = max(gap, *(abs(a - b) for a, b in zip(row.sampler_logps, same.sampler_logps, strict=True)))
            assert row.prompt_ids == tuple(render_prompt(tokenizer, request.prompt.messages))
    assert gap < 1e-3 and other_views < len(rows) / 2, (gap, other_views)
    assert [row.completion_ids for row in thin.sample(requests, 4)] == [row.completion_ids for row in rows], (
        "batches of 7 rows"
    )
    for seed, step in ((10, 4), (9, 5)):
        other = HFSampler(model, tokenizer, adapter, params, seed).sample(requests, step)
        assert all(a.completion_ids != b.completion_ids for a, b in zip(rows, other)), "seed and step must matter"
    ends = [Request(prompt(), "full", f"0/0/{i}") for i in range(300)]
    rows = HFSampler(tiny().model, tokenizer, NoAdapter(), SamplingParams(40), 0).sample(ends, 0)
    for row in rows:
        assert row.finished == (row.completion_ids[-1] == tokenizer.eos_token_id)
        answer = row.completion_ids[:-1] if row.finished else row.completion_ids
        assert row.text == decode_text(tokenizer, answer) and tokenizer.eos_token not in row.text
    ended = sum(row.finished for row in rows)
    assert 0 < ended < len(rows), ended
    return f"three views in one batch within {gap:.1e} nats of one view at a time; {ended} of {len(rows)} rows ended by themselves"


TRIPLES = [("p", mode, f"x = {i}") for i in range(3) for mode in ("sentinel", "run_tests")]
# G, mix_ratio, rollout_ablate_frac -> teacher rows, deploy rows beside them, deploy rows in a group without teacher
COUNTS = [
    (8, 0.125, 0.25, 1, 2, 2),
    (8, 0.0625, 0.3125, 1, 3, 3),
    (4, 0.125, 0.125, 1, 1, 1),
    (4, 0.12, 0.12, 0, 0, 0),
    (10, 0.25, 0.25, 3, 3, 3),
    (6, 0.25, 0.75, 2, 4, 5),
    (2, 0.25, 0.25, 1, 1, 1),
    (4, 1.0, 0.25, 4, 0, 1),
    (16, 0.0, 0.25, 0, 4, 4),
    (5, 0.5, 0.5, 3, 2, 3),
    (50, 0.29, 0.01, 15, 1, 1),
    (1, 0.0, 1.0, 0, 1, 1),
]


def check_group(group: Group, size: int, teachers: int, deploys: int, name: str) -> None:
    """Assert the make-up of one group."""
    kinds = [("teacher", "full")] * teachers + [("student", "full")] * (size - teachers - deploys)
    kinds += [("student", "deploy")] * deploys
    assert [(row.source, row.view) for row in group.rollouts] == kinds, (size, teachers, deploys)
    assert [row.id for row in group.rollouts] == [f"{name}/{row}" for row in range(size)]
    assert all(row.prompt == group.prompt for row in group.rollouts)


@gate.invariant("every group has exactly G rows: teacher and deploy counts round half up, ids and order are right")
def _():
    student = HFSampler(tiny().model, tiny().tokenizer, NoAdapter(), SamplingParams(2), 0)
    pool = PoolSampler(TRIPLES, tiny().tokenizer, seed=0)
    prompts = [prompt(mode="sentinel"), prompt(mode="run_tests")]
    for size, mix, ablate, teachers, beside, alone in COUNTS:
        plan = GroupPlan(size, ablate, mix, teacher_off_step=5, teacher_modes=("sentinel",))
        for step, quarantine in ((0, True), (5, True), (4, False)):
            heard = []
            sampler = GroupSampler(student, pool, plan, deploy_view=quarantine)
            groups = sampler.sample(prompts, step, heard.append)
            assert [group.prompt for group in groups] == prompts
            mixed = step < 5
            check_group(groups[0], size, teachers * mixed, (beside if mixed else alone) * quarantine, f"{step}/0")
            check_group(groups[1], size, 0, alone * quarantine, f"{step}/1")
            assert Counter(row.id for row in heard) == Counter(row.id for group in groups for row in group.rollouts)
    refused(lambda: GroupSampler(student, None, GroupPlan(8, mix_ratio=0.5)))
    assert len(GroupSampler(student, None, GroupPlan(8, mix_ratio=0.5, teacher_off_step=0)).sample(prompts, 0)) == 2
    return f"{len(COUNTS)} rows of the table, 3 settings each"


@gate.invariant("a setting out of range is a one-line error that names it")
def _():
    bad = {
        "group_size": lambda: GroupPlan(0),
        "mix_ratio": lambda: GroupPlan(4, mix_ratio=1.5),
        "rollout_ablate_frac": lambda: GroupPlan(4, rollout_ablate_frac=-0.1),
        "teacher_off_step": lambda: GroupPlan(4, teacher_off_step=-1),
        "max_new": lambda: SamplingParams(0),
        "temperature": lambda: SamplingParams(1, temperature=float("nan")),
        "top_p": lambda: SamplingParams(1, top_p=0.0),
        "top_k": lambda: SamplingParams(1, top_k=-1),
    }
    for name, action in bad.items():
        assert refused(action).startswith(name)
    return f"{len(bad)} refused"


def stored(cells: int = 3, each: int = 4) -> list[dict[str, object]]:
    """Rows of a pool file: integer ids and labels, as real files have them."""
    pairs = [(cell, row) for cell in range(cells) for row in range(each)]
    return [
        {"problem_id": c, "mode": "sentinel", "response": f"```python\nx = {c}{i}\n```", "label": {"hacked": i > 1}}
        for c, i in pairs
    ]


def pool_of(rows: list[dict[str, object]], folder: str, name: str, seed: int = 1, max_tokens: int | None = None):
    """A pool sampler of rows written to a file."""
    path = Path(folder) / name
    with (gzip.open if name.endswith(".gz") else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return PoolSampler(path, tiny().tokenizer, seed, max_tokens=max_tokens)


@gate.invariant("teacher rows do not depend on labels; without replacement, repeats counted; each step draws anew")
def _():
    rows, tokenizer = stored(), tiny().tokenizer
    poisoned = [{"reward": float(i), **row, "label": {"hacked": None}} for i, row in enumerate(rows)]
    requests = [Request(prompt(str(c)), "full", f"0/{c}/{i}") for c in range(3) for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        clean, other = pool_of(rows, folder, "a.jsonl.gz"), pool_of(poisoned, folder, "b.jsonl")
        steps = [clean.sample(requests, step) for step in range(20)]
        assert steps == [other.sample(requests, step) for step in range(20)]
        reseeded = [pool_of(rows, folder, "a.jsonl", seed=2).sample(requests, step) for step in range(20)]
    assert clean.repeats == 0 and clean.cells == {(str(c), "sentinel"): 4 for c in range(3)}
    for answers in steps:
        for c in range(3):
            assert {a.text for a in answers if a.prompt.problem_id == str(c)} == {
                row["response"] for row in rows if row["problem_id"] == c
            }
    firsts = Counter(answers[0].text for answers in steps)
    assert len(firsts) == 4 and reseeded != steps
    nine = clean.sample([Request(prompt("1"), "full", f"0/0/{i}") for i in range(9)], 0)
    assert clean.repeats == 5 and [a.text for a in nine[:4]] == [a.text for a in nine[4:8]]
    row = nine[0]
    assert (row.source, row.view, row.finished, row.sampler_logps) == ("teacher", "full", True, ())
    assert row.completion_ids == (*tokenizer(row.text)["input_ids"], tokenizer.eos_token_id)
    assert row.prompt_ids == tuple(render_prompt(tokenizer, row.prompt.messages))
    return f"20 steps equal under poisoned labels; first rows {sorted(firsts.values())}"


@gate.invariant("a malformed, missing, over-long or special-token row is a one-line error that names it")
def _():
    good, tokenizer = stored()[0], tiny().tokenizer
    bad = {
        "response": {**good, "response": None},
        "mode": {**good, "mode": 3},
        "problem_id": {k: v for k, v in good.items() if k != "problem_id"},
    }
    with tempfile.TemporaryDirectory() as folder:
        for field, row in bad.items():
            message = refused(lambda row=row: pool_of([good, row], folder, "bad.jsonl"))
            assert f"bad.jsonl:2: field {field}" in message, message
        (Path(folder) / "broken.jsonl").write_text('{"problem_id": \n')
        (Path(folder) / "empty.jsonl").write_text("\n")
        (Path(folder) / "not.jsonl.gz").write_text("plain")
        for name in ("broken.jsonl", "empty.jsonl", "not.jsonl.gz", "absent.jsonl"):
            assert name in refused(lambda name=name: PoolSampler(Path(folder) / name, tokenizer, seed=0))
        tokens = len(tokenizer(good["response"])["input_ids"]) + 1
        assert ":1:" in refused(lambda: pool_of([good], folder, "a.jsonl", max_tokens=tokens - 1))
        pool = pool_of([good], folder, "a.jsonl", max_tokens=tokens)
        special = {**good, "response": "a<|im_end|>b"}
        assert "<|im_end|>" in refused(lambda: pool_of([special], folder, "special.jsonl"))
    message = refused(lambda: pool.require([("0", "sentinel"), ("7", "sentinel"), ("0", "gt_only")]))
    assert "7 under sentinel" in message and "0 under gt_only" in message and "0 under sentinel" not in message
    refused(lambda: pool.sample([Request(prompt("9"), "full", "0/0/0")], 0))
    return message


@gate.invariant("real rollout files load as pools and come back as the text that was stored")
def _():
    path = shared_folder() / "rollouts_qwen3_4b_run_tests.jsonl.gz"
    pool = PoolSampler(path, tiny().tokenizer, seed=0)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = {(str(row["problem_id"]), row["response"]) for row in map(json.loads, lines)}
    requests = [Request(prompt(*cell), "full", f"0/{i}/0") for i, cell in enumerate(pool.cells)]
    rows = pool.sample(requests, 0)
    assert all((row.prompt.problem_id, row.text) in texts for row in rows)
    return f"{sum(pool.cells.values())} rows, {len(pool.cells)} cells"


if __name__ == "__main__":
    gate.main()
