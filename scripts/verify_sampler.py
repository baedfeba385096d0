"""The decode loop: what is sampled is what the model says, and a row does not depend on the rows beside it.

Invariants
- greedy decoding equals transformers' generate token by token under left padding, for plain, sliding-window and linear
  attention;
- a row stays the same however the batch is split, reordered or thinned out;
- recorded log-probabilities equal a full forward pass of logits / T over the whole vocabulary;
- each distinct prompt is prefilled once and a finished row costs nothing more;
- token frequencies equal softmax(logits / T) and hand-made top_k and top_p sets; draws are uniform;
- model mode, attention and torch's RNG are left as they were; non-finite weights and over-long prompts stop it.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3_5TextConfig, Qwen3NextConfig

from _gate import Gate
from _tiny import random_prompts, refused, stops, tiny
from vgrout.models import load_model
from vgrout.rollout import Completion, SamplingParams, decode
from vgrout.rollout.decode import batches
from vgrout.rollout.draw import draw, uniform_draws

gate = Gate(__doc__)


def other_models() -> dict[str, PreTrainedModel]:
    """Small random models with other kinds of cache than Qwen3's."""
    common: dict[str, Any] = dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=4, head_dim=8)
    common |= dict(num_attention_heads=4, num_key_value_heads=2, eos_token_id=None, bos_token_id=None)
    linear = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
    configs = {
        "sliding window": Qwen2Config(**common, use_sliding_window=True, sliding_window=6, max_window_layers=2),
        "Qwen3-Next": Qwen3NextConfig(**common, **linear, **experts),
        "Qwen3.5": Qwen3_5TextConfig(**common, **linear),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {name: AutoModelForCausalLM.from_config(config).eval() for name, config in configs.items()}
    for model in models.values():
        model.get_submodule("model.norm").weight.data.add_(12.0)
    return models


def generate(model: PreTrainedModel, prompts: list[list[int]], **settings: Any) -> torch.Tensor:
    """transformers' generate on left-padded prompts; returns [R, prompt + new] ids."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return model.generate(ids, attention_mask=mask, pad_token_id=0, top_k=0, **settings)  # ty: ignore[not-callable]


def greedy_matches(model: PreTrainedModel) -> str:
    """Assert that greedy decoding of mixed prompts equals generate of each prompt alone."""
    prompts, stop = random_prompts([3, 17, 9, 30, 17], copies=2), stops(model)
    ours = decode(model, prompts, [0] * len(prompts), SamplingParams(24, temperature=0.0), stop)
    for ids, mine in zip(prompts, ours):
        reference = generate(model, [ids], do_sample=False, max_new_tokens=24, eos_token_id=sorted(stop))
        assert list(mine.ids) == reference[0, len(ids) :].tolist(), (mine.ids, reference)
        assert mine.finished == (mine.ids[-1] in stop)
    lengths = {len(completion.ids) for completion in ours}
    assert len(lengths) > 2, f"rows should end at different lengths, not {lengths}"
    return f"{sum(len(completion.ids) for completion in ours)} tokens"


@gate.invariant("greedy decoding equals generate token by token, prompts of mixed length side by side")
def _():
    return greedy_matches(tiny().model)


@gate.invariant("greedy decoding equals generate for sliding-window and linear attention")
def _():
    return ", ".join(f"{name}: {greedy_matches(model)}" for name, model in other_models().items())


@gate.invariant("a row stays the same when the batch is split, reordered or thinned out")
def _():
    prompts = random_prompts([3, 17, 9, 17, 40], copies=4)
    seeds, stop, tokens = list(range(len(prompts))), stops(tiny().model, every=40), 0
    for params in (SamplingParams(32), SamplingParams(32, 0.7, 0.9, 20), SamplingParams(32, 1.0, 0.8)):
        whole = decode(tiny().model, prompts, seeds, params, stop)
        assert len({row.ids for row in whole}) == len(whole), "rows of one prompt must differ"
        pairs: list[tuple[Completion, Completion]] = []
        for max_rows in (1, 7):
            pairs += zip(whole, decode(tiny().model, prompts, seeds, params, stop, max_rows=max_rows))
        some = random.Random(0).sample(seeds, 11)
        thin = decode(tiny().model, [prompts[row] for row in some], some, params, stop)
        pairs += [(whole[row], alone) for row, alone in zip(some, thin)]
        changed = [a for a, b in pairs if a.ids != b.ids]
        assert not changed, f"{len(changed)} of {len(pairs)} rows changed"
        tokens += sum(len(a.ids) for a, _ in pairs)
    assert sorted(row for part in batches([(tuple(p), "full") for p in prompts], 7) for row in part) == seeds
    return f"{tokens} tokens compared, 0 rows changed"


@gate.invariant("recorded log-probabilities equal a full forward pass of logits / T over the whole vocabulary")
def _():
    worst, count, prompts = 0.0, 0, random_prompts([3, 30, 12], copies=4)
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
    model, shapes, heard = tiny().model, [], []
    hook = model.register_forward_pre_hook(lambda m, a, k: shapes.append(k["input_ids"].shape), with_kwargs=True)
    prompts = random_prompts([3, 17, 9], copies=6)
    try:
        rows = decode(
            model, prompts, list(range(18)), SamplingParams(50), stops(model), progress=lambda *now: heard.append(now)
        )
    finally:
        hook.remove()
    lengths = [len(row.ids) for row in rows]
    row_steps = sum(shape[0] for shape in shapes[1:])
    assert shapes[0] == (3, 17) and all(shape[1] == 1 for shape in shapes[1:]), shapes
    # The prefill yields each row's first token; each further token is one row in one step.
    assert row_steps == sum(lengths) - len(rows), (row_steps, lengths)
    assert heard[-1] == (sum(lengths), 0) and len(heard) == max(lengths) and len(set(lengths)) > 4
    return f"{sum(lengths)} tokens: 3 prefills, {row_steps} row-steps (without dropping {18 * (max(lengths) - 1)})"


@gate.invariant("mode, attention and torch's RNG are left as they were; non-finite weights and long prompts stop it")
def _():
    model = load_model("tiny").model.train()
    before = torch.random.get_rng_state()
    rows = decode(model, [[5, 6], [7]], [1, 2], SamplingParams(3), frozenset())
    assert all(len(row.ids) == 3 and not row.finished for row in rows)
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
    model = load_model("tiny", dtype="bf16").model
    rows = decode(model, random_prompts([5, 9]), [1, 2], SamplingParams(8, 0.7, 0.95, 20), frozenset())
    assert all(len(row.ids) == 8 and max(row.logps) < 0 for row in rows)
    return "16 tokens"


LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0, 0.0, 1.5])


def kept_by_hand(params: SamplingParams) -> list[float]:
    """The distribution that temperature, then top_k, then top_p leave of LOGITS, in plain Python."""
    weights = [math.exp(x / params.temperature) for x in LOGITS.tolist()]
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
    table = [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 1.0, 3), (1.0, 0.6, 0), (0.7, 0.95, 4), (1.0, 1e-6, 0), (2.0, 0.9, 99)]
    for t, p, k in table:
        params = SamplingParams(1, t, p, k)
        tokens, logps = draw(LOGITS.expand(count, -1), grid, params)
        expected = kept_by_hand(params)
        seen = torch.bincount(tokens, minlength=len(LOGITS)) / count
        # An even grid of uniform numbers must split exactly at the cumulative probabilities.
        worst = max(worst, (seen - torch.tensor(expected)).abs().max().item())
        kept.append(sum(x > 0 for x in expected))
        assert torch.allclose(logps, (LOGITS / t).log_softmax(-1)[tokens]), "log-probabilities are of the unfiltered"
    assert worst <= 1.5 / count, worst
    return f"max error {worst:.1e} (grid {1 / count:.0e}), tokens kept {kept}"


@gate.invariant("seeded draws are uniform and sampled tokens pass a chi-square bound against the model's softmax")
def _():
    draws = uniform_draws(list(range(4_000)), 5)
    assert len(draws.unique()) == draws.numel() and torch.equal(draws[7], uniform_draws([7], 5)[0])
    counts, expected = torch.histc(draws.float().flatten(), 50, 0, 1), draws.numel() / 50
    flat = ((counts - expected) ** 2 / expected).sum().item()
    assert flat < 95, flat  # 49 degrees of freedom: P(> 95) is 1e-4
    ids, rows = random_prompts([12])[0], 4_000
    sampled = decode(tiny().model, [ids] * rows, list(range(rows)), SamplingParams(1), frozenset())
    with torch.no_grad():
        probs = tiny().model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    order = probs.argsort(descending=True)
    bins = torch.empty_like(order)  # about equal mass each, by rank of likelihood
    bins[order] = (probs[order].cumsum(-1) * 30).long().clamp(max=29)
    mass = torch.zeros(30).index_add_(0, bins, probs) * rows
    seen = torch.bincount(bins[torch.tensor([row.ids[0] for row in sampled])], minlength=30)
    used = mass > 0
    chi, freedom = ((seen - mass)[used] ** 2 / mass[used]).sum().item(), int(used.sum()) - 1
    assert freedom > 15 and chi < freedom + 4 * math.sqrt(2 * freedom), (chi, freedom)
    return f"uniform {flat:.0f} on 49, model {chi:.0f} on {freedom} degrees of freedom"


if __name__ == "__main__":
    gate.main()
