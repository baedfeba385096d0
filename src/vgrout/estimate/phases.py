"""What is in memory at the peak of each phase of a run. docs/memory.md has each formula with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from vgrout.estimate.sizes import (
    F32,
    adapter_bytes,
    cache_bytes,
    deployed,
    difference_bytes,
    forward_bytes,
    layer_saved,
    merge_bytes,
    rollout_bytes,
    token_factor_bytes,
    trained,
)
from vgrout.estimate.work import Backward, Sampling, Work

LOGIT_BACKWARD = 16
"""Bytes for each entry of a chunk of logits while its log-probabilities are differentiated."""


@dataclass(frozen=True)
class Term:
    """One thing in memory."""

    what: str
    bytes: int


@dataclass(frozen=True)
class Memory:
    """Terms on the device, and in the host's memory beside them."""

    loaded: tuple[Term, ...]
    """Model and adapter, from the start."""
    training: tuple[Term, ...]
    """What training adds for as long as it lasts."""
    phases: dict[str, tuple[Term, ...]]
    """What each phase adds at its peak; `load` comes before training."""
    host: tuple[Term, ...]

    def totals(self) -> dict[str, int]:
        """Peak of each phase."""
        loaded, training = total(self.loaded), total(self.training)
        return {name: loaded + training * (name != "load") + total(own) for name, own in self.phases.items()}

    def peak(self) -> tuple[str, int]:
        """The phase with the highest peak, and that peak."""
        return max(self.totals().items(), key=lambda item: item[1])


def total(terms: tuple[Term, ...]) -> int:
    return sum(term.bytes for term in terms)


def sampling_terms(w: Work, s: Sampling) -> tuple[Term, ...]:
    """Of decoding: the prefill's activations or the draw, whichever is more, with the cache that is there then."""
    two = s.views > 1
    cache = cache_bytes(w, s.rows, s.prompt + s.new)
    prefilled = cache_bytes(w, s.prefills, s.prompt)
    per_entry = w.width + (8 if s.top_k else 24 if s.top_p == 1 else 44)
    entries = s.rows * w.shape.vocab
    spread = (prefilled + cache_bytes(w, s.rows, s.prompt) // 2) // w.shape.layers
    prefill = forward_bytes(w, s.prefills * s.prompt, products=4 if two else 3)
    factors = (Term("factors of the other view", difference_bytes(w)),) if two else ()
    if prefilled + prefill > cache + max(spread, per_entry * entries):
        return (*factors, Term("KV cache of the prompts", prefilled), Term("activations of the prompts", prefill))
    draw = Term(f"logits and the draw, {per_entry} B x {s.rows} rows x vocabulary", per_entry * entries)
    spread_term = Term("prompts' caches spread over the rows", spread)
    return (
        *factors,
        Term(f"KV cache of {s.rows} rows x {s.prompt + s.new} tokens", cache),
        max(draw, spread_term, key=lambda t: t.bytes),
    )


def backward_terms(w: Work, b: Backward) -> tuple[Term, ...]:
    """Of one micro-batch's forward and backward at its peak."""
    s, tokens = w.shape, b.tokens
    layer = tokens * layer_saved(w)
    inputs = tokens * s.hidden * w.width
    flowing = tokens * w.width * ((2 if w.adapter == "lora2r" else 3) * s.intermediate + s.hidden)
    kept = {"sums": 0, "rollouts": rollout_bytes(w, b.batch), "tokens": token_factor_bytes(w, tokens)}[b.keeps]
    copied = kept // 2 if b.half_copy else 0
    ends = inputs + tokens * F32 * s.hidden
    logits = min(w.chunk, tokens) * s.vocab * LOGIT_BACKWARD
    reference = forward_bytes(w, tokens, products=4) if w.kl else 0
    stored = Term("inputs of the layers", s.layers * inputs)
    saved = Term("saved by one layer", layer)
    if not w.checkpointed:
        stored, saved = Term("saved by all layers", s.layers * (inputs + layer)), Term("saved by one layer", 0)
    what = {"sums": "", "rollouts": f"gradients of {b.batch} rollouts", "tokens": f"factors of {tokens} tokens"}[
        b.keeps
    ]
    at_logits = (
        stored,
        Term("hidden states behind the last layer", ends),
        Term("one chunk of logits and its gradient", logits),
    )
    at_reference = (stored, Term("hidden states behind the last layer", ends), Term("reference pass", reference))
    flow = Term("gradients on their way through a layer", flowing)
    first = (stored, saved, flow)
    # At the last layer to be differentiated nearly all of what is kept is there, and of the stored inputs one layer's.
    rest = (
        (Term("inputs of the layers", stored.bytes // s.layers),)
        if w.checkpointed
        else (Term("saved by one layer", inputs + layer),)
    )
    last = (*rest, saved, flow, Term(what, kept * (s.layers - 1) // s.layers))
    after = (Term(what, kept), Term("their deployed half, copied out", copied))
    candidates = (at_logits, at_reference, first, *((last, after) if kept else ()))
    return tuple(t for t in max(candidates, key=total) if t.bytes)


def observe_terms(w: Work) -> tuple[Term, ...]:
    """Of the pass without gradient that an intervention asks for."""
    tokens, s = w.update.tokens, w.shape
    forward = Term("activations of a layer", forward_bytes(w, tokens, products=5))
    if w.observe == "nothing":
        return ()
    if w.observe == "hidden":
        return (forward, Term("hidden states of every layer", (s.layers + 1) * tokens * s.hidden * w.width))
    return (forward, Term("KV cache of the batch", cache_bytes(w, 1, tokens)))


def estimate(w: Work) -> Memory:
    """The memory of a run."""
    s, P4 = w.shape, F32 * trained(w)
    axes = w.k_use * deployed(w) * w.width if w.pairs else 0
    loaded = (
        Term(f"weights, {s.parameters:,} x {w.width} B", s.parameters * w.width),
        Term(f"adapter, {trained(w):,} trained numbers and what is frozen beside them", adapter_bytes(w)),
    )
    training = (
        Term("gradients", P4),
        Term("Adam's two moments", 2 * P4),
        Term("the proposed update", P4),
        Term(f"axes of v_hack in use, {w.k_use} x {deployed(w):,}", axes),
    )
    merge = Term("merging the largest module", merge_bytes(w))
    sampling = sampling_terms(w, w.sampling)
    evaluation = sampling_terms(w, w.evaluation)
    extra = (
        Term("gradients put aside", w.sums_aside * P4),
        Term("the teacher rows' part of the gradient", P4 * w.teacher_copy),
    )
    edited = int(1.5 * P4) + P4 * w.teacher_copy * 2 if w.measured else 0
    phases = {
        "load": (merge,),
        "sampling": sampling if total(sampling) >= merge.bytes else (merge,),
        "observe": observe_terms(w)
        if not w.own_pass
        else backward_terms(w, Backward(w.update.rows, w.update.length, w.update.budget)),
        "update": (*backward_terms(w, w.update), *(t for t in extra if t.bytes)),
        "optimizer": (
            Term(
                "Adam's denominators" if edited <= P4 else "copies that are measured along the direction",
                max(P4, edited),
            ),
        ),
        "direction": backward_terms(w, w.pairs) if w.pairs else (),
        "evaluation": evaluation,
    }
    host = [Term("pristine copy of the wrapped weights", s.target_parameters * w.width)]
    if w.pairs:
        rows = w.pairs.rows
        host += [
            Term(f"gradients of {rows} completions of pairs, fp32", rows * deployed(w) * F32),
            Term("their differences and singular vectors", rows * deployed(w) * F32),
            Term(f"v_hack, {w.top_k} axes", w.top_k * deployed(w) * w.width),
        ]
    return Memory(loaded, tuple(t for t in training if t.bytes), phases, tuple(host))
