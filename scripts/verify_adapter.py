"""lora2r: identity, views, merging, init, checkpoints.

Invariants:
- at init every view is the original model: bit for bit unfolded, within rounding folded (fp32 and bf16), and the KL of
  full and deploy to base is exactly 0 in both forms;
- folded and unfolded agree in value and in every gradient, of parameters and of inputs, in every view;
- the deploy view resets the quarantine to its init, not to zero; the blocks have no cross terms;
- views and merges restore on any exit and nest; a merged view is that view's forward; merging starts from the pristine
  weight, so it does not drift;
- exactly the target linears are wrapped, their ranks are clamped, and models that cannot hold the adapter are refused;
- each module's init is its own, of the stated variance, and regenerated from the seed;
- checkpoints keep a young change that bf16 copies of A and B would drown, reload, and refuse everything foreign;
- a crash while a checkpoint is written leaves the one that was there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path
from unittest import mock

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from _gate import Gate
from _models import adapted, largest, lora, qwen3
from vgrout.adapter import AdapterConfig, attach, checkpoint
from vgrout.adapter.base import TARGETS, Adapter
from vgrout.adapter.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from vgrout.types import UserError, View

gate = Gate(__doc__)
TOKENS = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))
VIEWS: tuple[View, ...] = ("full", "deploy", "base")
INFO = CheckpointInfo(model="m", revision="r", dtype="fp32")


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@gate.invariant("at init every view is the original model, and its KL to base is exactly 0")
def _():
    figures = []
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 0.3)):
        reference = logits(qwen3().to(dtype)).float()
        for fold in (False, True):
            model = qwen3().to(dtype)
            adapter = attach(model, AdapterConfig(rank=3, fold=fold))
            by_view = {}
            for view in VIEWS:
                with adapter.view(view):
                    by_view[view] = logits(model).float()
            error = max(largest(reference, got) for got in by_view.values())
            assert all(torch.equal(by_view[v], by_view["base"]) for v in VIEWS), "KL at init is not exactly 0"
            assert (error < bound) if fold else (error == 0), (dtype, fold, error)
            figures.append(f"{str(dtype)[6:]} {'folded' if fold else 'unfolded'} {error:.1e}")
    size = float(reference.abs().max())
    return f"logit error {', '.join(figures)} (logits up to {size:.1f})"


@gate.invariant("folded and unfolded agree in value and in every gradient")
def _():
    worst_value = worst_grad = 0.0
    for view in VIEWS:
        outcomes = []
        for fold in (False, True):
            model, adapter = adapted(fold=fold)
            generator = torch.Generator().manual_seed(4)
            x = torch.randn(3, 9, 32, generator=generator, dtype=torch.float64).requires_grad_()
            adapter.zero_grad()
            with adapter.view(view):
                out = model(inputs_embeds=x, use_cache=False).logits
                out.square().sum().backward()
            assert x.grad is not None
            assert view == "base" or all(bool(p.grad.any()) for p in adapter.parameters() if p.grad is not None)
            assert not any(m.weight.grad is not None for m in adapter.modules), "a base weight received a gradient"
            outcomes.append((out.detach(), [x.grad, *(p.grad for p in adapter.parameters() if p.grad is not None)]))
        (value, grads), (folded_value, folded_grads) = outcomes
        worst_value = max(worst_value, largest(value, folded_value))
        for a, b in zip(grads, folded_grads, strict=True):
            worst_grad = max(worst_grad, largest(a, b) / (float(a.abs().max()) or 1.0))
    assert worst_value < 1e-9 and worst_grad < 1e-9, (worst_value, worst_grad)
    return f"logits within {worst_value:.1e}, each gradient within {worst_grad:.1e} of its own size, in 3 views (fp64)"


@gate.invariant("deploy resets the quarantine to its init; no cross terms")
def _():
    model, adapter = adapted(moved=0.0)
    at_init = logits(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, t in adapter.trainables():
            part = t.parts["quarantine"]
            t.value[part] += torch.randn(t.value[part].shape, generator=generator).double()
    moved = largest(logits(model), at_init)
    with adapter.view("deploy"):
        error = largest(logits(model), at_init)
    assert moved > 1 and error < 1e-9, (moved, error)
    module = lora(adapter)[0]
    deployed, quarantine = (
        module.B[:, k] @ module.A[k] - module.B0[:, k] @ module.A0[k]
        for k in (module.block_columns("deployed"), module.block_columns("quarantine"))
    )
    cross = largest(module.delta("full"), deployed + quarantine)
    assert cross < 1e-5 and float(deployed.detach().abs().max()) == 0, cross
    return f"full moved by {moved:.1f}, deploy by {error:.1e}; sum of the blocks within {cross:.1e} of the whole"


@gate.invariant("views and merges restore on any exit, nest, and agree")
def _():
    model, adapter = adapted(double=False)
    plain = logits(model)
    weights = [m.weight.clone() for m in adapter.modules]
    worst = 0.0
    for view in VIEWS:
        with adapter.view(view):
            expected = logits(model)
        with adapter.merged(view):
            worst = max(worst, largest(logits(model), expected))
    with contextlib.suppress(KeyError), adapter.view("base"), adapter.merged("deploy"):
        raise KeyError
    with adapter.merged("full"):
        outer = logits(model)
        with adapter.merged("deploy"):
            assert largest(logits(model), outer) > 1e-3
        assert torch.equal(logits(model), outer), "an inner merge was not undone"
    with adapter.view("deploy"):
        with adapter.view("base"):
            pass
        assert adapter.state.view == "deploy"
    assert adapter.state.view == "full" and adapter.state.merged is None
    assert all(torch.equal(m.weight, w) for m, w in zip(adapter.modules, weights)) and torch.equal(logits(model), plain)
    assert worst < 1e-4, worst
    return f"merged against adapted logits within {worst:.1e}"


@gate.invariant("merging does not drift, and the base view stays the original weight")
def _():
    _, adapter = adapted(double=False)
    original = [m.weight for m in qwen3().modules() if isinstance(m, nn.Linear) and m.weight.shape[0] != 61]
    for step in range(50):
        updates = [
            1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in adapter.parameters()
        ]
        adapter.apply(updates, decay=0.0)
        with adapter.merged("deploy"):
            pass
    worst = 0.0
    with adapter.merged("base"):
        assert all(torch.equal(m.weight, w) for m, w in zip(adapter.modules, original, strict=True))
    with adapter.merged("full"):
        for m, w in zip(lora(adapter), original, strict=True):
            worst = max(worst, largest(m.weight, w + (m.B @ m.A - m.B0 @ m.A0)))
    assert worst == 0 or worst < 1e-6, worst
    return f"after 50 updates and merges the merged weight is within {worst:.1e}, and base is bit-identical"


@gate.invariant("exactly the targets are wrapped; ranks are clamped; impossible models are refused")
def _():
    model, adapter = adapted(rank=64, double=False)
    names = {m.name for m in adapter.modules}
    linears = {n for n, m in qwen3().named_modules() if isinstance(m, nn.Linear) and n.rsplit(".", 1)[-1] in TARGETS}
    assert names == linears and len(names) == 14 and not any("lm_head" in n or "embed" in n for n in names)
    ranks = {m.name.rsplit(".", 1)[-1]: m.rank for m in lora(adapter)}
    sixteen = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert ranks == dict.fromkeys(sixteen, 16) | {"k_proj": 8, "v_proj": 8}, ranks
    trainable = {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"A", "B"}, trainable
    refusals = {
        "no target linear": nn.Sequential(nn.Linear(3, 3)),
        "rank 1 per block": nn.ModuleDict({"q_proj": nn.Linear(4, 1)}),
    }
    for says, hopeless in refusals.items():
        try:
            attach(hopeless, AdapterConfig(rank=2))
        except UserError as error:
            assert says in str(error), error
        else:
            raise AssertionError(f"accepted a model with {says}")
    return f"{len(names)} modules, ranks {sorted(set(ranks.values()))} of 64 asked for"


@gate.invariant("each module's init is its own, of variance 1/d_in and 1/2r, and regenerated from the seed")
def _():
    first, again, other = (lora(attach(qwen3(), AdapterConfig(rank=8, init_seed=s))) for s in (4, 4, 5))
    assert all(torch.equal(a.A0, b.A0) and torch.equal(a.B0, b.B0) for a, b in zip(first, again))
    own = {tuple(t.flatten()[:4].tolist()) for m in [*first, *other] for t in (m.A0, m.B0)}
    assert len(own) == 4 * len(first), "two modules, or two seeds, share an init"
    ones = [torch.cat([(t * t.shape[1] ** 0.5).flatten() for t in ts]) for ts in zip(*((m.A0, m.B0) for m in first))]
    assert all(abs(float(t.var()) - 1) < 0.05 and abs(float(t.mean())) < 0.05 for t in ones)
    assert all(torch.equal(m.A, m.A0) and torch.equal(m.B, m.B0) for m in first)
    return f"28 modules of 2 seeds all differ; variances {ones[0].var():.3f} / d_in and {ones[1].var():.3f} / 2r"


def young(folder: Path) -> tuple[Adapter, Path]:
    """An adapter that has moved by 0.3 % of its weights, and its checkpoint."""
    _, adapter = adapted(moved=0.0, double=False)
    with torch.no_grad():
        for i, (_, t) in enumerate(adapter.trainables()):
            t.value.add_(0.003 * t.init.std() * torch.randn(t.value.shape, generator=torch.Generator().manual_seed(i)))
    path = folder / "ckpt.safetensors"
    save_checkpoint(path, adapter, INFO, step=7, config={"a": 1})
    return adapter, path


@gate.invariant("a checkpoint keeps a young change, reloads, and repeats byte for byte")
def _():
    with tempfile.TemporaryDirectory() as name:
        adapter, path = young(Path(name))
        _, fresh = adapted(moved=0.0, double=False)
        assert load_checkpoint(path, fresh, INFO) == 7
        ours = theirs = 0.0
        for (_, t), (_, got) in zip(adapter.trainables(), fresh.trainables(), strict=True):
            change = t.value - t.init
            ours = max(ours, float((got.value - got.init - change).detach().norm() / change.detach().norm()))
            copy = t.value.to(torch.bfloat16).float() - t.init
            theirs = max(theirs, float((copy - change).detach().norm() / change.detach().norm()))
        again = path.with_name("again.safetensors")
        save_checkpoint(again, adapter, INFO, step=7, config={"a": 1})
        assert again.read_bytes() == path.read_bytes() and not list(path.parent.glob("*.tmp"))
        with safe_open(path, framework="pt") as handle:
            ranks = json.loads(handle.metadata()["vgrout"])["module_ranks"]
        assert ranks == {m.name: m.rank for m in lora(adapter)}, "the ranks of the modules are not recorded"
    assert ours < 4e-3 < theirs, (ours, theirs)
    return f"relative error of the change {ours:.1e}; bf16 copies of A and B would have {theirs:.2f}"


@gate.invariant("a crash while a checkpoint is written leaves the one that was there")
def _():
    with tempfile.TemporaryDirectory() as name:
        adapter, path = young(Path(name))
        before = path.read_bytes()
        plain = Path(name) / "plain"
        plain.touch()
        assert path.stat().st_mode == plain.stat().st_mode, (
            "others may not read the checkpoint, though the umask lets them"
        )

        def torn(tensors: dict[str, Tensor], where: Path, **rest: object) -> None:
            Path(where).write_bytes(before[: len(before) // 2])
            raise OSError("disk full")

        for broken in (mock.patch.object(checkpoint, "save_file", torn), mock.patch("os.fsync", side_effect=OSError)):
            with broken, contextlib.suppress(UserError):
                save_checkpoint(path, adapter, INFO, step=8, config={})
                raise AssertionError("the crash did not happen")
            assert path.read_bytes() == before, "the old checkpoint is gone"
        save_checkpoint(path, adapter, INFO, step=8, config={})
        assert load_checkpoint(path, adapter, INFO) == 8
    return f"{len(before)} bytes intact after a torn write and a failed sync"


@gate.invariant("a checkpoint of another model, rank, seed or shape is refused by name, a torn one too")
def _():
    with tempfile.TemporaryDirectory() as name:
        _, path = young(Path(name))
        other_model = nn.ModuleDict({"q_proj": nn.Linear(32, 32)})
        cases = {
            "model": (attach(qwen3(), AdapterConfig(rank=3)), dataclasses.replace(INFO, model="other")),
            "revision": (attach(qwen3(), AdapterConfig(rank=3)), dataclasses.replace(INFO, revision="other")),
            "dtype": (attach(qwen3(), AdapterConfig(rank=3)), dataclasses.replace(INFO, dtype="bf16")),
            "rank": (attach(qwen3(), AdapterConfig(rank=2)), INFO),
            "init_seed": (attach(qwen3(), AdapterConfig(rank=3, init_seed=1)), INFO),
            "module_ranks": (attach(other_model, AdapterConfig(rank=3)), INFO),
            "adapter": (attach(qwen3(), AdapterConfig(rank=3)), INFO),
        }
        cases["adapter"][0].kind = "delta_s"
        for says, (adapter, info) in cases.items():
            untouched = [p.clone() for p in adapter.parameters()]
            try:
                load_checkpoint(path, adapter, info)
            except UserError as error:
                assert f"{says} is" in str(error) and path.name in str(error), error
                assert says != "module_ranks" or "layers.0.mlp.down_proj" in str(error), error
            else:
                raise AssertionError(f"a checkpoint with another {says} was accepted")
            assert all(torch.equal(p, q) for p, q in zip(adapter.parameters(), untouched)), "half loaded"
        foreign, torn = path.with_name("foreign.safetensors"), path.with_name("torn.safetensors")
        save_file(load_file(path), foreign)
        torn.write_bytes(path.read_bytes()[:-50])
        for file, says in ((foreign, "it is not ours"), (torn, "not a complete"), (path / "none", "no such file")):
            try:
                load_checkpoint(file, attach(qwen3(), AdapterConfig(rank=3)), INFO)
            except UserError as error:
                assert says in str(error), error
            else:
                raise AssertionError(f"accepted {file.name}")
    return f"{len(cases) + 3} refused, nothing half loaded"


if __name__ == "__main__":
    gate.main()
