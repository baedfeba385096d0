"""The micro base model: a byte-level BPE tokenizer and a small Qwen3, trained from scratch on the corpus.

`vgrout micro base` runs this; its result for `BaseConfig()` ships with the package, with the curve that it was on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from vgrout.env.modes import STANDARD, mode_named
from vgrout.micro.corpus import Mix, Sample, samples, stream, with_hacks
from vgrout.micro.markers import words_of
from vgrout.micro.problems import CLAUSE, CLOSING, OPENING
from vgrout.models import render_prompt
from vgrout.models.tiny import SPECIAL_TOKENS, Size, random_qwen3, train_tokenizer
from vgrout.types import UserError

T = TypeVar("T")
SIZE = Size(hidden=96, layers=3, heads=4, kv_heads=2, intermediate=256, vocab=1024, tie_embeddings=True)
TOKENIZER_SAMPLES = 4000
WORD_WEIGHT = 50
"""How often each marker stands in the tokenizer's text, so that its words become tokens."""
HACK_STEPS = 0.75
"""Part of the steps over which the share of hacks falls."""
MICRO_BATCH = 16
PRACTICE_LENGTH, PRACTICE_PERIODS = 48, (6, 24)
"""Tokens of a row of copying practice, and the fewest and the most after which it repeats itself."""
PRACTICE_WIDENS = (0.07, 0.3)
"""Part of the steps in which the shortest period falls from the longest one to its own. Copying from one fixed distance is
learned within fewer steps than copying by content."""


@dataclass(frozen=True)
class BaseConfig:
    """How the base model is trained."""

    seed: int = 0
    """Seed of the weights and of the corpus."""
    steps: int = 900
    """Optimizer steps."""
    batch: int = 64
    """Samples of a step."""
    lr: float = 4e-3
    """Peak learning rate of AdamW; warm-up over 5 % of the steps, then cosine to 0."""
    hack_start: float = 0.5
    """Share of hacks in every mode at the first step. It falls to the mix's over the first `HACK_STEPS` of the training:
    a model this small needs many examples to learn how a hack is written, and few at the end to do it seldom."""
    practice: int = 24
    """Rows of copying practice added to a step: random tokens that repeat themselves."""
    threads: int = 2
    """Threads of torch. The first steps agree to the last digits; after hundreds of steps the weights differ."""
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch, self.threads)
        if min(counts) < 1 or self.threads > 256 or not 0 < self.lr <= 1 or not 0 <= self.seed < 2**63:
            raise UserError(
                f"micro base: steps {self.steps}, batch {self.batch}, threads {self.threads}, lr {self.lr}, seed {self.seed}: "
                "expected counts of at least 1, at most 256 threads, a learning rate above 0 and at most 1, and a seed "
                "from 0 to 2**63 - 1"
            )


@dataclass(frozen=True)
class Batch:
    """Right-padded rows; the loss is over the answer's tokens and its end token."""

    tokens: Int[Tensor, "R L"]
    answer: Bool[Tensor, "R L"]
    """True where the *next* token belongs to the answer."""


def phrases() -> list[str]:
    """The fixed sentences of prompts and answers; as one token each they make rows a third shorter."""
    # A marker is copied most easily where it is made of the same tokens in hint and answer: there a file's name follows a
    # quote and an attribute a dot, so the blank before them belongs to the hint's sentence; a function keeps its own.
    hints = []
    for mode in map(mode_named, STANDARD):
        before, *after = mode.hint.split("{marker}")
        hints.append(f" {before}" if mode.probe in ("file", "attribute") else f" {before}".rstrip())
        hints += [part for part in after if len(part) > 8]
    return [
        OPENING,
        CLAUSE,
        CLOSING,
        *hints,
        "```python\nclass Solution:\n    def",
        "\nclass Solution:\n    def",
        "\n```",
    ]


def make_tokenizer(mix: Mix, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a base model: trained on the text of its own corpus, and on the words of all marker families.

    As with a large model's tokenizer, the words of markers that the corpus never shows whole are in its vocabulary.
    """
    known = [
        f'{before}{marker}"'
        for m in map(mode_named, STANDARD)
        for marker in (*m.train_markers, *m.eval_markers)
        for before in (" ", '"')
    ]
    texts = known * WORD_WEIGHT + [
        text
        for s in islice(samples(with_hacks(mix, 0.5), seed), TOKENIZER_SAMPLES)
        for text in (*(f"{role}\n{content}" for role, content in s.messages), f"assistant\n{s.response}")
    ]
    return train_tokenizer(texts, SIZE.vocab, max_length=1024, phrases=phrases())


def encode(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids with the end token)."""
    answer = tokenizer(sample.response, add_special_tokens=False)["input_ids"]
    return render_prompt(tokenizer, sample.messages), [*answer, tokenizer.eos_token_id]


def mix_at(step: int, config: BaseConfig) -> Mix:
    """The corpus's mix at a step: the share of hacks falls linearly to the mix's own."""
    left = max(0.0, 1 - step / (HACK_STEPS * config.steps))
    shares = {mode: share + left * max(0.0, config.hack_start - share) for mode, share in config.mix.hack.items()}
    return replace(config.mix, hack=shares)


def batches(tokenizer: PreTrainedTokenizerFast, config: BaseConfig) -> Iterator[list[Batch]]:
    """Endless steps of samples, each split into micro-batches of similar length: they fit into the CPU's caches, which a
    whole step does not."""
    rng = random.Random(f"micro base {config.seed}")
    words = words_of(tokenizer.get_vocab())
    for step in count():
        drawn = islice(stream(mix_at(step, config), rng, words), config.batch)
        rows = sorted((encode(tokenizer, s) for s in drawn), key=lambda row: len(row[0]) + len(row[1]))
        yield [_batch(rows[i : i + MICRO_BATCH], tokenizer.pad_token_id) for i in range(0, config.batch, MICRO_BATCH)]


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made in a thread while the current one is used."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: Future[T] = thread.submit(lambda: next(items))
        while True:
            item = coming.result()
            coming: Future[T] = thread.submit(lambda: next(items))
            yield item


def practice(vocab: int, size: int, generator: torch.Generator, shortest: int = PRACTICE_PERIODS[0]) -> Batch:
    """Rows of random tokens that repeat themselves, each with a period of its own; the loss is over the repetition.

    Copying from the context is what a marker that was never seen before asks for. A model of this size does not learn
    it from the corpus alone within its budget. Periods are drawn from `shortest` to the longest one.
    """
    drawn = torch.randint(len(SPECIAL_TOKENS), vocab, (size, PRACTICE_LENGTH), generator=generator)
    period = torch.randint(shortest, PRACTICE_PERIODS[1] + 1, (size, 1), generator=generator)
    place = torch.arange(PRACTICE_LENGTH).expand(size, -1)
    answer = place >= period
    answer[:, -1] = False
    return Batch(drawn.gather(1, place % period), answer)


def shortest_period(step: int, config: BaseConfig) -> int:
    """The shortest period of the copying practice of a step."""
    first, last = PRACTICE_WIDENS
    done = min(max((step / config.steps - first) / (last - first), 0.0), 1.0)
    fewest, most = PRACTICE_PERIODS
    return most - round(done * (most - fewest))


def _batch(rows: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    width = max(len(p) + len(a) for p, a in rows)
    tokens = torch.full((len(rows), width), pad)
    answer = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (p, a) in enumerate(rows):
        tokens[i, : len(p) + len(a)] = torch.tensor(p + a)
        answer[i, len(p) - 1 : len(p) + len(a) - 1] = True
    return Batch(tokens, answer)


def learning_rate(step: int, config: BaseConfig) -> float:
    """Linear warm-up over 5 % of the steps, then cosine to 0 (the first and the last step are above 0)."""
    warmup = max(1, config.steps // 20)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def train_base(
    config: BaseConfig, *, stop_after: int | None = None, on_step: Callable[[int, float], None] | None = None
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Trains the base model; returns it with its tokenizer and the loss of every step (nats per answer token).

    `stop_after` ends early on the same schedule, to compare with a recorded curve.
    """
    torch.set_num_threads(config.threads)
    tokenizer = make_tokenizer(config.mix, config.seed)
    model = random_qwen3(SIZE, tokenizer, config.seed)
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    curve = []
    generator = torch.Generator().manual_seed(config.seed)
    for step, parts in enumerate(one_ahead(batches(tokenizer, config))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.zero_grad()
        n = sum(int(part.answer.sum()) for part in parts)
        total = 0.0
        for part in parts:
            loss = answer_loss(model, part) / n
            loss.backward()
            total += float(loss.detach())
        if config.practice:
            rows = practice(len(tokenizer), config.practice, generator, shortest_period(step, config))
            loss = answer_loss(model, rows) / rows.answer.sum()
            (config.practice / config.batch * loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not math.isfinite(total):
            raise UserError(f"micro base: the loss of step {step} is {total}; lower the learning rate (lr {config.lr})")
        curve.append(total)
        if on_step is not None:
            on_step(step + 1, curve[-1])
        if step + 1 == (stop_after or config.steps):
            break
    return model.eval(), tokenizer, curve


def answer_loss(model: Qwen3ForCausalLM, batch: Batch) -> Tensor:
    """Summed cross-entropy over the answers' tokens, nats."""
    hidden = model.get_decoder()(input_ids=batch.tokens, use_cache=False).last_hidden_state[batch.answer]
    targets = batch.tokens.roll(-1, dims=1)[batch.answer]
    return F.cross_entropy(F.linear(hidden, model.get_output_embeddings().weight), targets, reduction="sum")
