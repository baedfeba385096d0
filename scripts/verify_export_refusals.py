"""`vgrout export` refuses: what it cannot do, and what its own checks find wrong. Nothing is left behind then.

Invariants:
- a wrong export (of every kind that is broken here on purpose) is refused by the check that is there for it, and checking
  leaves the adapter as it was;
- what cannot be exported is refused by name, in one line;
- neither a refusal nor a failure while files are written or checked leaves a file or a folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from _cli import FOLDER, refused, run
from _exports import CLAMPED, configured, export, made, opened
from _gate import Gate, refusal
from vgrout.adapter import AdapterConfig
from vgrout.adapter.lora2r import Lora2rLinear
from vgrout.export import check, export_run, tensors, write
from vgrout.export.tensors import change_error, digests, scrambled
from vgrout.types import View

gate = Gate(__doc__)


def wrong_factors(change: Callable[[Lora2rLinear, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
    inner = tensors.lora_factors
    return mock.patch.object(tensors, "lora_factors", lambda module, view: change(module, *inner(module, view)))


def wrong_config(change: Callable[[Any], object]) -> Any:
    inner = write.lora_config

    def config(*args: Any) -> Any:
        built = inner(*args)
        change(built)
        return built

    return mock.patch.object(write, "lora_config", config)


def doubled_alpha(config: Any) -> None:
    config.lora_alpha *= 2
    config.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}


def broken_exports() -> dict[str, tuple[Any, View, Any, str]]:
    """What is broken -> (the patch, the view and form to export, what the refusal must say)."""
    own, disk, turns = tensors.lora_factors, "tensors on disk are not", iter(range(99))
    trained = lambda m, A, B: (A, torch.cat([m.B[:, : m.rank], B[:, m.rank :]], 1))  # noqa: E731
    return {
        "B for B - B0": (wrong_factors(trained), "deploy", "peft", "logits differ"),
        "no A - A0": (wrong_factors(lambda m, A, B: (A[: m.rank], B[:, : m.rank])), "deploy", "peft", "logits differ"),
        "full as deploy": (wrong_factors(lambda m, A, B: own(m, "full")), "deploy", "peft", "depends on the quarantine"),
        "deploy as full": (wrong_factors(lambda m, A, B: own(m, "deploy")), "full", "peft", "does not contain the quar"),
        "alpha twice the rank": (wrong_config(doubled_alpha), "deploy", "peft", "logits differ"),
        "one rank for all": (wrong_config(lambda c: c.rank_pattern.clear()), "deploy", "peft", "cannot be loaded"),
        "full merged as deploy": (
            mock.patch.object(Lora2rLinear, "delta", lambda m, view: (m.B @ m.A - m.B0 @ m.A0).detach()),
            "deploy", "merged", "depends on the quarantine",
        ),
        "another tensor on disk": (
            mock.patch.object(check, "load_file", lambda p: {k: v * 1.0001 for k, v in load_file(p).items()}),
            "deploy", "peft", disk,
        ),
        "a weight not written": (
            mock.patch.object(write, "exported", lambda *args: list(tensors.exported(*args))[1:]), "deploy", "merged", disk,
        ),
        "another tokenizer": (
            mock.patch.object(check, "render_prompt", lambda t, messages: [next(turns)]), "deploy", "merged", "tokenizer",
        ),
    }  # fmt: skip


@gate.invariant("a wrong export is refused by its own check, and the check leaves the adapter as it was", slow=True)
def _():
    folder = made("lora-tiny", configured(adapter=CLAMPED))
    broken = broken_exports()
    for label, (patch, view, form, says) in broken.items():
        with patch:
            message = refusal(lambda: export(folder, view, form, "wrong"))  # noqa: B023 - called at once
        assert says in message, f"{label}: {message}"
        assert not (FOLDER / "exports" / "wrong").exists() and not list((FOLDER / "exports").glob(".*")), label
    _, adapter = opened(folder)
    before = [p.detach().clone() for p in adapter.parameters()]
    for block in ("deployed", "quarantine"):
        with contextlib.suppress(ZeroDivisionError), scrambled(adapter, block):
            assert any(not torch.equal(a, b) for a, b in zip(before, adapter.parameters()))
            raise ZeroDivisionError
    digests(adapter, "deploy", "merged", torch.float32)
    change_error(adapter, "deploy", "merged", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before, adapter.parameters())), "the adapter has changed"
    return f"{len(broken)} breaks refused: {', '.join(broken)}; {len(before)} tensors as before"


@gate.invariant(
    "what cannot be exported is refused by name; nothing is left behind, also when writing or the check fails"
)
def _():
    folder, exports = made("lora-tiny", configured(adapter=CLAMPED)), FOLDER / "exports"
    singular = made("merged-shared", configured(adapter=AdapterConfig(kind="delta_s")), 0.03)
    empty = Path(shutil.copytree(folder, FOLDER / "no-checkpoints"))
    shutil.rmtree(empty / "checkpoints")
    elsewhere = made("other-seed", configured(adapter=CLAMPED, seed=1)) / "checkpoints/ckpt_update0006.safetensors"
    exports.mkdir(exist_ok=True)
    (exports / "taken").mkdir()
    (exports / "file").write_text("")
    before = sorted(str(p) for p in exports.rglob("*"))
    to, named = ("--to", "peft"), ("--view", "deploy")
    new = ("--out", str(exports / "new" / "deeper"))
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("export", str(folder), "--view", "base", *to, *new), ("base", "deploy")),
        (("export", str(folder), "--view", "none", *to, *new), ("none", "deploy", "full")),
        (("export", str(folder), *named, "--to", "gguf", *new), ("gguf", "peft", "merged")),
        (("export", str(folder), *named, *to, *new, "--dtype", "fp8"), ("fp8", "bf16")),
        (("export", str(singular), *named, *to, *new), ("delta_s", "full rank", "--to merged")),
        (("export", str(folder), *named, *to, "--out", str(exports / "taken")), ("taken", "exists")),
        (("export", str(folder), *named, *to, "--out", str(exports / "file")), ("file", "exists")),
        (("export", str(folder), *named, *to, "--out", str(exports / "file" / "x")), ("file", "another folder")),
        (("export", str(folder), *named, *to, "--out", "/proc/vgrout/x"), ("/proc/vgrout/x", "folder")),
        (("export", str(FOLDER / "nowhere"), *named, *to, *new), ("nowhere", "not a run folder")),
        (("export", str(empty), *named, *to, *new), ("no-checkpoints", "no checkpoint", "--checkpoint")),
        (("export", str(folder), *named, *to, *new, "--checkpoint", "absent"), ("absent", "no such file")),
        (("export", str(folder), *named, *to, *new, "--checkpoint", str(elsewhere)), ("seed is 1", "has 0", "own run")),
    ]
    for arguments, says in cases:
        refused(*arguments, says=says)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    broken = {
        "save_file": mock.patch.object(write, "save_file", side_effect=full),
        "card": mock.patch("vgrout.export.command.card", side_effect=full),
        "rename": mock.patch.object(Path, "rename", side_effect=full),
        "check": mock.patch.object(check, "EXACT", -1.0),
        "NaN": mock.patch.object(check, "largest", lambda a, b: float("nan")),
        "interrupt": mock.patch.object(check, "logits", side_effect=KeyboardInterrupt),
    }
    said = {}
    for label, patch in broken.items():
        with patch:
            code, _, err = run("export", str(folder), *named, *to, *new)
        said[label] = err.splitlines()[-1]
        assert code in (2, 130) and "Traceback" not in err and not (exports / "new").exists(), (label, err)
    assert "No space" in said["save_file"] and "logits differ" in said["check"] and "nan" in said["NaN"], said
    assert sorted(str(p) for p in exports.rglob("*")) == before, "something was left behind"
    assert "unknown" in refusal(lambda: export_run(folder, "both", "peft", exports / "new"))
    return f"{len(cases) + 1} refused, {len(broken)} failures left nothing"


if __name__ == "__main__":
    gate.main()
