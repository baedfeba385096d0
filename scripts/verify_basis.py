"""What delta_s stands on: singular bases and their cache, the quarantine's rotation, checkpoints (spec 3.2).

- U diag(S) Vh is the weight, with orthonormal factors and canonical signs, in fp32 and bf16; the cache is keyed by the
  weight; damaged and foreign cache files are refused
- Q is orthogonal at any size, seeded, and not the identity
- a checkpoint comes back; one of another basis is refused; decay pulls toward 0
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import torch

from _gate import Gate, refusal
from _models import adapted, largest, plain_logps, qwen3, step_of
from vgrout.adapter import AdapterConfig, attach
from vgrout.adapter.basis import cached, decompose
from vgrout.adapter.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from vgrout.adapter.rotation import Rotation

gate = Gate(__doc__)
INFO = CheckpointInfo(model="tiny", revision="0", dtype="fp32")


@gate.invariant(
    "U diag(S) Vh is the weight, orthonormal, with canonical signs, in fp32 and bf16; the cache is the weight's"
)
def _():
    figures = []
    for dtype, near in ((torch.float32, 2e-5), (torch.bfloat16, 6e-2)):
        for shape in ((48, 32), (16, 40), (33, 33)):
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            basis = decompose(weight)
            m = min(shape)
            assert basis.U.dtype == basis.Vh.dtype == dtype and basis.S.dtype == torch.float32
            U, S, Vh = basis.U.double(), basis.S.double(), basis.Vh.double()
            error = max(largest(U @ S.diag() @ Vh, weight.double()) / float(S[0]), largest(U.T @ U, torch.eye(m)))
            error = max(error, largest(Vh @ Vh.T, torch.eye(m)))
            assert error < near, (dtype, shape, error)
            assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()), "a sign is not canonical"
            figures.append(error)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = cached(weight, folder)
        with mock.patch("vgrout.adapter.basis.decompose", side_effect=AssertionError("computed again")):
            again = cached(weight, folder)
        assert torch.equal(first.U, again.U) and torch.equal(first.Vh, again.Vh) and torch.equal(first.S, again.S)
        changed = weight.clone()
        changed[0, 0] += 1
        assert largest(cached(changed, folder).U, first.U) > 0, "a changed weight met another's basis"
        cached(weight.float(), folder)
        files = sorted(folder.iterdir())
        assert len(files) == 3 and not any(f.name.startswith(".") for f in files)
        for file in files:
            file.write_bytes(file.read_bytes()[:100])
        assert "delete the file" in refusal(lambda: cached(weight, folder))
        blocked = folder / "file"
        blocked.write_text("")
        assert "VGROUT_CACHE" in refusal(lambda: cached(weight, blocked / "svd"))
    return f"6 weights: within {max(figures[:3]):.1e} (fp32), {max(figures[3:]):.1e} (bf16); 3 cache files of 3 weights"


@gate.invariant("Q is orthogonal at any size, its inverse is its transpose, it is seeded and mixes")
def _():
    worst = 0.0
    for size in (3, 63, 64, 100, 192):
        Q = Rotation(size, seed=1, like=torch.zeros(1)).double()
        eye = torch.eye(size, dtype=torch.float64)
        dense = Q(eye)  # row j is Q e_j
        worst = max(worst, largest(dense @ dense.T, eye), largest(Q.inverse(dense), eye))
        assert largest(Rotation(size, seed=1, like=torch.zeros(1)).double()(eye), dense) == 0
        assert largest(Rotation(size, seed=2, like=torch.zeros(1)).double()(eye), dense) > 0.1
        assert float((dense.abs() > 0.999).sum()) < size / 2, "hardly anything is mixed"
    assert worst < 1e-6, worst
    return f"5 sizes: within {worst:.1e}"


@gate.invariant("a checkpoint comes back, one of another basis is refused, and decay pulls toward 0")
def _():
    model, adapter = adapted(kind="delta_s", double=False, moved=0.003)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ckpt.safetensors"
        save_checkpoint(path, adapter, INFO, step=3, config={})
        other = attach(qwen3(), AdapterConfig(kind="delta_s"))
        assert load_checkpoint(path, other, INFO) == 3
        error = max(
            largest(a.value, b.value) / float(b.value.detach().abs().max())
            for (_, a), (_, b) in zip(other.trainables(), adapter.trainables(), strict=True)
        )
        assert 0 < error < 4e-3, error
        for what, bad in {
            "basis": attach(qwen3(seed=1), AdapterConfig(kind="delta_s")),
            "quarantine_basis": attach(qwen3(), AdapterConfig(kind="delta_s", quarantine_basis="distinct")),
            "adapter": attach(qwen3(), AdapterConfig(rank=4)),
        }.items():
            assert what in refusal(lambda bad=bad: load_checkpoint(path, bad, INFO)), what
    before = [t.value.detach().clone() for _, t in adapter.trainables()]
    adapter.apply([torch.zeros_like(b) for b in before], decay=0.25)
    decayed = max(largest(t.value, 0.75 * b) for (_, t), b in zip(adapter.trainables(), before, strict=True))
    assert decayed < 1e-8
    with torch.no_grad(), adapter.view("full"):
        plain_logps(model, step_of([[0.0, 1.0]]).rollouts[0], 1.0)
    return f"relative error of bf16 differences {error:.1e}; 3 foreign checkpoints refused"


if __name__ == "__main__":
    gate.main()
