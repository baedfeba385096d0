"""Models, tokenizers and samplers: what is sampled is what the model says, and rows are shared out exactly.

Invariants
- tokenizer: every text survives encoding and decoding; same text, same tokenizer; same seed, same weights; bad names are
  one-line errors.
- decode loop: greedy equals transformers' generate token by token, for plain, sliding-window and linear attention; a row
  does not depend on the rows beside it; recorded log-probabilities equal a full forward pass; each distinct prompt is
  prefilled once and a finished row costs nothing more; model mode, attention and torch's RNG are left as they were;
  non-finite weights stop it.
- drawing: frequencies equal softmax(logits / T), and hand-made top_k and top_p sets.
- sampler: a row is sampled inside its own view's merged weights; text is the completion without its end token.
- groups: exactly G rows; teacher and deploy counts round half up for a whole table; ids, order and on_finish are right.
- pool: rows are chosen by (seed, step, problem, mode) whatever the labels say; without replacement, repeats counted;
  malformed, missing, over-long rows are one-line errors.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from _gate import Gate, shared_folder

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3_5TextConfig, Qwen3NextConfig

from vgrout.models import (
    LoadedModel,
    decode_text,
    load_model,
    render_prompt,
    shipped_texts,
    stop_ids,
    tokenizer_fingerprint,
)
from vgrout.rollout import (
    GroupPlan,
    GroupSampler,
    HFSampler,
    NoAdapter,
    PoolSampler,
    Request,
    SamplingParams,
    decode,
    round_half_up,
)
from vgrout.rollout.decode import batches
from vgrout.rollout.draw import draw, uniform_draws
from vgrout.types import Prompt, UserError, View

gate = Gate(__doc__)


@cache
def tiny() -> LoadedModel:
    """A tiny model whose distributions are uneven enough that a wrong token shows."""
    loaded = load_model("tiny", seed=3)
    loaded.model.get_submodule("model.norm").weight.data.mul_(12.0)
    return loaded


def random_prompts(lengths: list[int], vocab: int = 500) -> list[list[int]]:
    generator = random.Random(5)
    return [[generator.randrange(10, vocab) for _ in range(length)] for length in lengths]


def stops(model: PreTrainedModel, every: int = 16) -> frozenset[int]:
    """Enough stop tokens that rows end at many different lengths."""
    return frozenset(range(3, model.config.get_text_config().vocab_size, every))


def prompt(problem: str = "p", mode: str = "sentinel", text: str = "Add two numbers.") -> Prompt:
    turns = (("system", "You write Python."), ("user", text))
    return Prompt(problem_id=problem, mode=mode, markers="train", marker="m", messages=turns)


def refused(action) -> str:
    """The one-line message of the UserError that `action` must raise."""
    try:
        action()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) > 20, error
        return str(error)
    raise AssertionError("accepted what it must refuse")


# --- models and tokenizer -------------------------------------------------------------------------------------------


@gate.invariant("encoding and decoding return every text unchanged")
def _():
    tokenizer, source = tiny().tokenizer, random.Random(1)
    texts = [*shipped_texts(), " x  y\n\n\t", "naïve “quotes” 日本語 🙂\u0301e\u0301 \x00\x7f", "</think> a\r\n"]
    texts += [
        "".join(chr(source.choice([*range(1, 0xD800), *range(0xE000, 0x10FFFF)])) for _ in range(40))
        for _ in range(200)
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert all(decode_text(tokenizer, row) == text for row, text in zip(ids, texts))
    assert len(tokenizer) == tiny().model.config.vocab_size == 1024
    all_ids = list(range(len(tokenizer)))
    source.shuffle(all_ids)
    assert isinstance(decode_text(tokenizer, all_ids), str)
    return f"{len(texts)} texts, {sum(map(len, texts)) / sum(map(len, ids)):.2f} characters a token"


@gate.invariant("the chat form ends with an empty think block and every turn is closed")
def _():
    text = tiny().tokenizer.decode(render_prompt(tiny().tokenizer, [("system", "S"), ("user", "U")]))
    turns = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert text == turns + "<think>\n\n</think>\n\n", text
    thinking = tiny().tokenizer.apply_chat_template(
        [{"role": "user", "content": "U"}], add_generation_prompt=True, tokenize=False
    )
    assert thinking.endswith("assistant\n")
    assert stop_ids(tiny().model, tiny().tokenizer) == {tiny().tokenizer.convert_tokens_to_ids("<|im_end|>")}
    return f"{len(text)} characters"


def identity(loaded: LoadedModel) -> str:
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in loaded.model.state_dict().values()))
    return f"{weights.hexdigest()[:16]} {tokenizer_fingerprint(loaded.tokenizer)[:16]} {loaded.revision}"


@gate.invariant("same seed, same weights; another seed, other weights; torch's RNG is left as it was")
def _():
    before = torch.random.get_rng_state()
    first, again, other = (identity(load_model("tiny", seed=seed)).split() for seed in (0, 0, 1))
    assert first == again and first[0] != other[0] and first[1] == other[1]
    assert torch.equal(before, torch.random.get_rng_state())
    return " ".join(first)


@gate.invariant("another process makes the same weights and tokenizer", slow=True)
def _():
    code = "import verify_sampler as v; print(v.identity(v.load_model('tiny', seed=0)))"
    env = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert run.stdout.strip() == identity(load_model("tiny", seed=0)), run.stdout + run.stderr
    return run.stdout.strip()


@gate.invariant("a model that cannot be had is a one-line error; a saved one loads and answers the same")
def _():
    messages = [
        refused(lambda: load_model("no/such-model")),
        refused(lambda: load_model("tiny:z")),
        refused(lambda: load_model("tiny", dtype="float8")),
        refused(lambda: load_model("tiny", device="tpu")),
        refused(lambda: load_model("tiny", device=f"cuda:{torch.cuda.device_count()}")),
        refused(lambda: load_model("tiny", revision="main")),
    ]
    assert "download-model" in messages[0] and "fp32, bf16" in messages[2], messages
    with tempfile.TemporaryDirectory() as folder:
        refused(lambda: load_model(folder))
        tiny().model.save_pretrained(folder)
        tiny().tokenizer.save_pretrained(folder)
        loaded = load_model(folder)
    assert identity(loaded).split()[:2] == identity(tiny()).split()[:2]
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    return f"{len(messages) + 1} refused"


# --- decode loop ----------------------------------------------------------------------------------------------------


def small_models() -> dict[str, PreTrainedModel]:
    """Random models with other kinds of cache than Qwen3's."""
    common = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": None, "bos_token_id": None,
    }  # fmt: skip
    linear = {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    sliding = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    configs = {
        "sliding window": Qwen2Config(**common, **sliding),
        "Qwen3-Next": Qwen3NextConfig(**common, **linear, **experts),
        "Qwen3.5": Qwen3_5TextConfig(**common, **linear),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {name: AutoModelForCausalLM.from_config(config).eval() for name, config in configs.items()}
    for model in models.values():
        model.get_submodule("model.norm").weight.data.add_(12.0)
    return models


def greedy_matches(model: PreTrainedModel, copies: int = 2) -> tuple[int, int]:
    """(tokens compared, rows) after asserting that greedy decoding equals generate."""
    prompts = [p for p in random_prompts([3, 17, 9, 30, 17]) for _ in range(copies)]
    stop = stops(model)
    ours = decode(model, prompts, [0] * len(prompts), SamplingParams(max_new=24, temperature=0), stop)
    for ids, mine in zip(prompts, ours):
        reference = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), do_sample=False, max_new_tokens=24,
            eos_token_id=sorted(stop), pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert list(mine.ids) == reference, (mine.ids, reference)
        assert mine.finished == (mine.ids[-1] in stop)
    assert len({len(completion.ids) for completion in ours}) > 2, "rows should end at different lengths"
    return sum(len(completion.ids) for completion in ours), len(ours)


@gate.invariant("greedy decoding equals generate token by token, prompts of mixed length side by side")
def _():
    tokens, rows = greedy_matches(tiny().model)
    return f"{tokens} tokens, {rows} rows"


@gate.invariant("greedy decoding equals generate for sliding-window and linear attention")
def _():
    return ", ".join(f"{name}: {greedy_matches(model)[0]} tokens" for name, model in small_models().items())


@gate.invariant("a row stays the same when the batch is split, reordered or thinned out")
def _():
    prompts = [p for p in random_prompts([3, 17, 9, 30, 17, 40]) for _ in range(5)]
    seeds = list(range(len(prompts)))
    changed = tokens = 0
    for params in (SamplingParams(40), SamplingParams(40, 0.7, 0.9, 20)):
        stop = stops(tiny().model, every=40)
        whole = decode(tiny().model, prompts, seeds, params, stop)
        for max_rows in (1, 7):
            split = decode(tiny().model, prompts, seeds, params, stop, max_rows=max_rows)
            changed += sum(a.ids != b.ids for a, b in zip(whole, split))
        some = random.Random(0).sample(seeds, 11)
        thin = decode(tiny().model, [prompts[row] for row in some], some, params, stop)
        changed += sum(whole[row].ids != b.ids for row, b in zip(some, thin))
        tokens += sum(len(row.ids) for row in whole)
        assert len({row.ids for row in whole}) == len(whole), "rows of one prompt must differ"
    assert changed == 0, f"{changed} rows changed"
    assert sorted(row for part in batches(prompts, 7) for row in part) == seeds
    return f"{tokens} tokens, 0 rows changed"


@gate.invariant("recorded log-probabilities equal a full forward pass of logits / T over the whole vocabulary")
def _():
    worst, count = 0.0, 0
    prompts = [p for p in random_prompts([3, 30, 12]) for _ in range(4)]
    for params in (SamplingParams(32), SamplingParams(32, 0.7, 0.9, 20), SamplingParams(32, 0.0)):
        rows = decode(tiny().model, prompts, list(range(len(prompts))), params, stops(tiny().model))
        for ids, row in zip(prompts, rows):
            with torch.no_grad():
                logits = tiny().model(torch.tensor([[*ids, *row.ids]])).logits[0, len(ids) - 1 : -1]
            logps = (logits / (params.temperature or 1)).log_softmax(-1)
            taken = logps.gather(-1, torch.tensor(row.ids)[:, None])[:, 0]
            worst = max(worst, (taken - torch.tensor(row.logps)).abs().max().item())
            count += len(row.ids)
    assert worst < 1e-4, worst
    return f"max error {worst:.1e} over {count} tokens"


@gate.invariant("each distinct prompt is prefilled once and finished rows cost nothing")
def _():
    model, seen = tiny().model, []
    hook = model.register_forward_pre_hook(lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    prompts = [p for p in random_prompts([3, 17, 9]) for _ in range(6)]
    heard = []
    try:
        rows = decode(
            model, prompts, list(range(18)), SamplingParams(50), stops(model), progress=lambda *now: heard.append(now)
        )
    finally:
        hook.remove()
    lengths = [len(row.ids) for row in rows]
    assert seen[0] == (3, 17), seen[0]
    # The prefill yields the first token of each row; each further token is one row in one step.
    assert sum(count for count, _ in seen[1:]) == sum(lengths) - len(rows), (seen, lengths)
    assert heard[-1] == (sum(lengths), 0) and len(heard) == max(lengths) and len(set(lengths)) > 4
    return f"{sum(lengths)} tokens in {sum(c for c, _ in seen[1:])} row-steps + 3 prefills; without dropping {18 * max(lengths)}"


@gate.invariant(
    "model mode, attention and torch's RNG are left as they were; non-finite weights and long prompts stop it"
)
def _():
    model = load_model("tiny").model.train()
    before = torch.random.get_rng_state()
    for row in decode(model, [[5, 6]], [1], SamplingParams(3), frozenset()):
        assert len(row.ids) == 3 and not row.finished
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training and model.config._attn_implementation == "sdpa"
    assert decode(model, [], [], SamplingParams(3), frozenset()) == []
    message = refused(lambda: decode(model, [[5] * 16_000], [1], SamplingParams(500), frozenset()))
    model.get_submodule("model.norm").weight.data.fill_(float("nan"))
    try:
        decode(model, [[5, 6]], [1], SamplingParams(3), frozenset())
    except FloatingPointError:
        return message
    raise AssertionError("sampled from non-finite weights")


@gate.invariant("bf16 weights decode too")
def _():
    loaded = load_model("tiny", dtype="bf16")
    rows = decode(loaded.model, random_prompts([5, 9]), [1, 2], SamplingParams(8, 0.7, 0.95, 20), frozenset())
    assert all(len(row.ids) == 8 and max(row.logps) < 0 for row in rows)
    return "2 rows"


# --- drawing --------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0, 0.0, 1.5])


def kept_by_hand(params: SamplingParams) -> list[float]:
    """The distribution that temperature, then top_k, then top_p leave, in plain Python."""
    weights = [2.718281828459045 ** (x / params.temperature) for x in LOGITS.tolist()]
    ranked = sorted(range(len(weights)), key=lambda i: -weights[i])[: params.top_k or None]
    total, kept, mass = sum(weights[i] for i in ranked), [], 0.0
    for i in ranked:
        kept.append(i)
        mass += weights[i] / total
        if mass >= params.top_p:
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@gate.invariant("token frequencies equal softmax(logits / T) after top_k and top_p, by hand")
def _():
    count, worst, kept = 20_000, 0.0, []
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for t, p, k in [(1, 1, 0), (0.7, 1, 0), (1, 1, 3), (1, 0.6, 0), (0.7, 0.95, 4), (1, 1e-6, 0), (2, 0.9, 99)]:
        params = SamplingParams(1, t, p, k)
        tokens, logps = draw(LOGITS.expand(count, -1), grid, params)
        expected = kept_by_hand(params)
        seen = torch.bincount(tokens, minlength=len(LOGITS)) / count
        # An even grid of uniform numbers must split exactly at the cumulative probabilities.
        worst = max(worst, (seen - torch.tensor(expected)).abs().max().item())
        kept.append(sum(x > 0 for x in expected))
        assert torch.allclose(logps, (LOGITS / t).log_softmax(-1)[tokens]), "log-probabilities are over everything"
    assert worst <= 1.5 / count, worst
    return f"max error {worst:.1e} (grid {1 / count:.0e}), tokens kept {kept}"


@gate.invariant("seeded draws are uniform, differ between rows and steps, and pass a chi-square bound end to end")
def _():
    draws = uniform_draws(list(range(4_000)), 5)
    assert len(draws.unique()) == draws.numel() and torch.equal(draws[7], uniform_draws([7], 5)[0])
    counts = torch.histc(draws.float().flatten(), 50, 0, 1)
    expected = draws.numel() / 50
    flat = ((counts - expected) ** 2 / expected).sum().item()
    assert flat < 95, flat  # chi-square, 49 degrees of freedom: P(> 95) is 1e-4
    ids, rows = random_prompts([12])[0], 3_000
    sampled = decode(tiny().model, [ids] * rows, list(range(rows)), SamplingParams(1), frozenset())
    with torch.no_grad():
        probs = tiny().model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    order = probs.argsort(descending=True)
    # Bins of about equal mass: the most likely tokens alone, the rest together in thirtieths.
    bins = torch.empty(len(probs), dtype=torch.long)
    bins[order] = (probs[order].cumsum(-1) * 30).long().clamp(max=29)
    mass = torch.zeros(30).index_add_(0, bins, probs) * rows
    seen = torch.bincount(bins[torch.tensor([row.ids[0] for row in sampled])], minlength=30)
    used = mass > 0
    chi = ((seen - mass)[used] ** 2 / mass[used]).sum().item()
    assert seen[~used].sum() == 0 and chi < 2.6 * used.sum().item() + 10, chi
    return f"uniform {flat:.0f} on 49, model {chi:.0f} on {used.sum().item() - 1} degrees of freedom"


# --- sampler, groups, pool ------------------------------------------------------------------------------------------


class Shifted:
    """Stands for an adapter: each view has other weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.weight, self.inside = model.get_input_embeddings().weight, []

    @contextmanager
    def merged(self, view: View):
        shift = {"full": 1, "deploy": 2, "base": 0}[view]
        kept = self.weight.data
        self.weight.data = kept.roll(shift, 0)
        self.inside.append(view)
        try:
            yield
        finally:
            self.weight.data = kept


@gate.invariant("a row is sampled inside its own view's weights, and its text is the completion without end token")
def _():
    model, tokenizer = tiny().model, tiny().tokenizer
    params, finished = SamplingParams(24), []
    views: list[View] = ["deploy", "full", "full", "base", "deploy"]
    requests = [Request(prompt(text=f"Task {i % 2}"), view, f"4/0/{i}") for i, view in enumerate(views)]
    adapter = Shifted(model)
    rows = HFSampler(model, tokenizer, adapter, params, 9).sample(requests, 4, finished.append)
    assert adapter.inside == ["full", "deploy", "base"], "one merge for each view"
    assert (
        sorted(row.id for row in finished) == [row.id for row in rows] == [request.rollout_id for request in requests]
    )
    for request, row in zip(requests, rows):
        with Shifted(model).merged(request.view):
            alone = HFSampler(model, tokenizer, NoAdapter(), params, 9).sample([request], 4)[0]
        assert alone == row or alone.completion_ids == row.completion_ids, (alone, row)
        assert (
            row.view == request.view and row.source == "student" and len(row.sampler_logps) == len(row.completion_ids)
        )
        assert row.prompt_ids == tuple(render_prompt(tokenizer, request.prompt.messages))
        answer = row.completion_ids[:-1] if row.finished else row.completion_ids
        assert row.text == decode_text(tokenizer, answer) and "<|im_end|>" not in row.text
        assert row.finished == (row.completion_ids[-1] == tokenizer.eos_token_id)
    other = HFSampler(model, tokenizer, adapter, params, 10).sample(requests, 4)
    assert all(a.completion_ids != b.completion_ids for a, b in zip(rows, other)), "the seed must matter"
    return f"{len(rows)} rows, views {adapter.inside[:3]}"


def pool_rows(cells: int = 3, each: int = 4) -> list[dict]:
    return [
        {
            "problem_id": c,
            "mode": "sentinel",
            "response": f"```python\nx = {c}{i}\n```",
            "label": {"hacked": i % 2 == 0},
        }
        for c in range(cells)
        for i in range(each)
    ]


def pool_of(rows: list[dict], folder: str, name: str = "pool.jsonl.gz", **settings) -> PoolSampler:
    path = Path(folder) / name
    with (gzip.open if name.endswith(".gz") else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return PoolSampler(path, tiny().tokenizer, **{"seed": 1, **settings})


@gate.invariant("every group has exactly G rows: teacher and deploy counts round half up, ids and order are right")
def _():
    triples = [("p", mode, f"x = {i}") for i in range(3) for mode in ("sentinel", "run_tests")]
    table = [  # G, mix, ablate -> teacher, deploy rows
        (8, 0.125, 0.25, 1, 2), (8, 0.0625, 0.3125, 1, 3), (4, 0.125, 0.125, 1, 1), (4, 0.12, 0.12, 0, 0),
        (10, 0.25, 0.25, 3, 3), (6, 0.25, 0.75, 2, 4), (2, 0.25, 0.25, 1, 1), (4, 1.0, 0.25, 4, 0),
        (16, 0.0, 0.25, 0, 4), (5, 0.5, 0.5, 3, 2), (50, 0.29, 0.0, 15, 0), (1, 0.0, 1.0, 0, 1),
    ]  # fmt: skip
    for size, mix, ablate, teachers, deploys in table:
        plan = GroupPlan(size, ablate, mix, teacher_off_step=5, teacher_modes=("sentinel",))
        student = HFSampler(tiny().model, tiny().tokenizer, NoAdapter(), SamplingParams(2), 0)
        pool = PoolSampler(triples, tiny().tokenizer, seed=0)
        prompts = [prompt(mode=mode) for mode in ("sentinel", "run_tests")]
        for step, quarantine in ((0, True), (5, True), (0, False)):
            heard = []
            groups = GroupSampler(student, pool, plan, deploy_view=quarantine).sample(prompts, step, heard.append)
            for index, group in enumerate(groups):
                from_pool = teachers if step < 5 and index == 0 else 0
                deploy = min(deploys if from_pool else round_half_up(ablate, size), size - from_pool) * quarantine
                kinds = [(row.source, row.view) for row in group.rollouts]
                full = size - from_pool - deploy
                assert (
                    kinds
                    == [("teacher", "full")] * from_pool
                    + [("student", "full")] * full
                    + [("student", "deploy")] * deploy
                )
                assert [row.id for row in group.rollouts] == [f"{step}/{index}/{i}" for i in range(size)]
                assert all(row.prompt == group.prompt == prompts[index] for row in group.rollouts)
            assert Counter(row.id for row in heard) == Counter(row.id for group in groups for row in group.rollouts)
    refused(lambda: GroupSampler(student, None, GroupPlan(8, mix_ratio=0.5)))
    for bad in ({"group_size": 0}, {"group_size": 4, "mix_ratio": 1.5}, {"group_size": 4, "rollout_ablate_frac": -0.1}):
        refused(lambda bad=bad: GroupPlan(**bad))
    for bad in (
        {"max_new": 0},
        {"max_new": 1, "top_p": 0.0},
        {"max_new": 1, "temperature": -1.0},
        {"max_new": 1, "top_k": -1},
    ):
        refused(lambda bad=bad: SamplingParams(**bad))
    return f"{len(table)} rows of the table, 3 settings each"


@gate.invariant("teacher rows do not depend on labels; without replacement, then repeats counted; every step its own")
def _():
    rows = pool_rows()
    poisoned = [{**row, "label": "poison", "reward": float(i), "gt_pass": None} for i, row in enumerate(rows)]
    requests = [Request(prompt(str(c)), "full", f"0/{c}/{i}") for c in range(3) for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        clean, other = pool_of(rows, folder), pool_of(poisoned, folder, "poisoned.jsonl")
        steps = [clean.sample(requests, step) for step in range(20)]
        assert steps == [other.sample(requests, step) for step in range(20)]
        reseeded = pool_of(rows, folder, seed=2)
    for answers in steps:
        assert all(len({a.text for a in answers if a.prompt.problem_id == str(c)}) == 4 for c in range(3))
    assert clean.repeats == 0 and clean.cells == {(str(c), "sentinel"): 4 for c in range(3)}
    firsts = Counter(answers[0].text for answers in steps)
    assert len(firsts) == 4 and [a.text for a in reseeded.sample(requests, 0)] != [a.text for a in steps[0]]
    nine = clean.sample([Request(prompt("1"), "full", f"0/0/{i}") for i in range(9)], 0)
    assert clean.repeats == 5 and [a.text for a in nine[:4]] == [a.text for a in nine[4:8]]
    row = nine[0]
    assert row.finished and row.sampler_logps == () and row.completion_ids[-1] == tiny().tokenizer.eos_token_id
    assert (row.source, row.view) == ("teacher", "full") and row.text == decode_text(
        tiny().tokenizer, row.completion_ids
    )
    return f"20 steps equal under poisoned labels, first rows {sorted(firsts.values())}"


@gate.invariant("a malformed, missing, over-long or special-token row is a one-line error that names it")
def _():
    good = pool_rows()[0]
    bad = [{**good, "response": None}, {**good, "mode": 3}, {k: v for k, v in good.items() if k != "problem_id"}]
    with tempfile.TemporaryDirectory() as folder:
        for row, name in zip(bad, ("response", "mode", "problem_id")):
            message = refused(lambda row=row: pool_of([good, row], folder))
            assert f":2: field {name}" in message, message
        (Path(folder) / "broken.jsonl").write_text('{"problem_id": \n')
        (Path(folder) / "empty.jsonl").write_text("\n")
        (Path(folder) / "not.jsonl.gz").write_text("plain")
        for name in ("broken.jsonl", "empty.jsonl", "not.jsonl.gz", "absent.jsonl"):
            assert name in refused(lambda name=name: PoolSampler(Path(folder) / name, tiny().tokenizer, seed=0))
        tokens = len(tiny().tokenizer(good["response"])["input_ids"]) + 1
        assert ":1:" in refused(lambda: pool_of([good], folder, max_tokens=tokens - 1))
        pool = pool_of([good], folder, max_tokens=tokens)
        assert "<|im_end|>" in refused(lambda: pool_of([{**good, "response": "a<|im_end|>b"}], folder))
    message = refused(lambda: pool.require([("0", "sentinel"), ("7", "sentinel"), ("0", "gt_only")]))
    assert "7 under sentinel" in message and "0 under gt_only" in message and "0 under sentinel" not in message
    refused(lambda: pool.sample([Request(prompt("9"), "full", "0/0/0")], 0))
    return message


@gate.invariant("real rollout files load as pools and come back as the text that was stored")
def _():
    name = "rollouts_qwen3_4b_run_tests.jsonl.gz"
    pool = PoolSampler(shared_folder() / name, tiny().tokenizer, seed=0)
    with gzip.open(shared_folder() / name, "rt", encoding="utf-8") as lines:
        stored = {(str(row["problem_id"]), row["response"]) for row in map(json.loads, lines)}
    cells = list(pool.cells)[:200]
    rows = pool.sample([Request(prompt(*cell), "full", f"0/{i}/0") for i, cell in enumerate(cells)], 0)
    assert all((row.prompt.problem_id, row.text) in stored for row in rows)
    return f"{sum(pool.cells.values())} rows, {len(pool.cells)} cells"


# --- speed ----------------------------------------------------------------------------------------------------------


@gate.invariant("decoding 8 prompts x 4 rows x 96 tokens takes less time than generate (3.4M model)", slow=True)
def _():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load_model("tiny:a").model
    prompts = [p for p in random_prompts([200, 195, 190, 200, 185, 200, 198, 192]) for _ in range(4)]
    padded = torch.tensor([[0] * (200 - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (200 - len(ids)) + [1] * len(ids) for ids in prompts])
    fixed = {"do_sample": True, "top_k": 0, "max_new_tokens": 96, "min_new_tokens": 96, "pad_token_id": 0}
    ending = stops(model, every=64)
    runs = {
        "generate": lambda: model.generate(padded, attention_mask=mask, **fixed),
        "ours": lambda: decode(model, prompts, list(range(32)), SamplingParams(96), frozenset()),
        "ours, rows ending": lambda: decode(model, prompts, list(range(32)), SamplingParams(96), ending),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(4):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    torch.set_num_threads(threads)
    best = {name: sorted(times[1:])[1] for name, times in seconds.items()}
    assert best["ours"] < best["generate"], best
    return ", ".join(f"{name} {value:.2f} s" for name, value in best.items())


if __name__ == "__main__":
    gate.main()
