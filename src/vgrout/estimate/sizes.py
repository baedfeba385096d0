"""Bytes of a run's parts, by counting the tensors that the code makes. docs/memory.md has each formula with its reason."""

from __future__ import annotations

from vgrout.estimate.work import Work

F32 = 4


def module_rank(w: Work, o: int, i: int) -> int:
    """Rank of one block of a linear."""
    return min(w.rank, min(o, i) // 2) if w.adapter == "lora2r" else min(o, i)


def trained(w: Work) -> int:
    """Trained numbers: A and B of rank 2r, or delta and delta_q."""
    sizes = w.shape.linears.values()
    if w.adapter == "lora2r":
        return w.shape.layers * sum(2 * module_rank(w, o, i) * (o + i) for o, i in sizes)
    return w.shape.layers * sum(2 * min(o, i) for o, i in sizes)


def deployed(w: Work) -> int:
    """Numbers of the deployed block, the coordinates of v_hack."""
    return trained(w) // 2


def adapter_bytes(w: Work) -> int:
    """Everything that the adapter holds on the device beside the weights."""
    if w.adapter == "lora2r":
        return 2 * F32 * trained(w)  # the init beside the trained tensors
    size = 0
    for o, i in w.shape.linears.values():
        m = min(o, i)
        size += w.width * m * (o + i) + F32 * 4 * m  # U, Vh; S, zero, delta, delta_q
        if w.distinct:
            rest = m % 64
            size += 16 * m + w.width * (64 * 64 + rest * rest)
    return w.shape.layers * size


def checkpoint_bytes(w: Work) -> int:
    """Tensors of a checkpoint: differences from the init in bf16."""
    return 2 * trained(w)


def cache_bytes(w: Work, rows: int, tokens: int) -> int:
    """Keys and values."""
    return rows * tokens * w.shape.layers * 2 * w.shape.kv * w.width


def rollout_bytes(w: Work, rows: int) -> int:
    """Every rollout's own gradient of the adapter: lora2r in the compute type, delta_s in fp32."""
    return rows * trained(w) * (w.width if w.adapter == "lora2r" else F32)


def token_factor_bytes(w: Work, tokens: int) -> int:
    """What each token's backward leaves at every delta_s module: h and g."""
    return tokens * w.shape.layers * 2 * w.width * sum(min(o, i) for o, i in w.shape.linears.values())


def layer_saved(w: Work) -> int:
    """Bytes for a token that one layer saves for its backward, its input left out."""
    s, b = w.shape, w.width
    wide = F32 if b < F32 else 0  # norms are computed in fp32: there is a copy of their inputs in bf16, none in fp32
    norms = 2 * wide * s.hidden + (0 if wide else F32 * s.hidden) + F32 * (s.q + s.kv)
    attention = b * (2 * s.q + 2 * s.kv) + F32 * s.heads
    mlp = b * 3 * s.intermediate
    if w.adapter == "lora2r":
        ranks = sum(2 * module_rank(w, o, i) for o, i in s.linears.values())
        own = b * (2 * s.hidden + s.intermediate + ranks)  # inputs of q/k/v, of gate/up, of down; bottlenecks
    else:
        own = b * sum(min(o, i) for o, i in s.linears.values())  # h = Vh x of each module
    return norms + attention + mlp + own


def forward_bytes(w: Work, tokens: int, *, products: int) -> int:
    """Temporaries of a layer's forward without gradient; `products` are those of the intermediate size alive at once."""
    s, b = w.shape, w.width
    # The embeddings, the layer's input, the residual stream and its norm; cosines and sines of the positions.
    around = b * (4 * s.hidden + 2 * s.head_dim)
    mlp = b * products * s.intermediate
    norm = (2 * b + 2 * F32) * s.q
    attention = b * (4 * s.q + 2 * s.kv)
    return tokens * (around + max(mlp, norm, attention))


def merge_bytes(w: Work) -> int:
    """Temporaries of one module whose weight is merged in place, the largest of them."""
    narrow = w.width < F32
    largest = 0
    for o, i in w.shape.linears.values():
        m = min(o, i)
        size = (3 * F32 + F32 * narrow + w.width * w.cuda) * o * i
        if w.adapter == "delta_s":
            size += F32 * (2 * m * i + narrow * (o * m + m * i)) - F32 * o * i
        largest = max(largest, size)
    return largest


def difference_bytes(w: Work) -> int:
    """Factors that lead from one view's weights to another's, for batches of two views."""
    if w.adapter == "lora2r":
        return w.width * trained(w)
    return w.width * w.shape.layers * sum(min(o, i) * i for o, i in w.shape.linears.values())
