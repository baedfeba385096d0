"""Where a result came from: versions, machine, code revision. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from vgrout.cores import usable_cores

_DISTRIBUTIONS = ("vgrout", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "vllm")
_PACKAGE = Path(__file__).parents[1]


def environment(sandbox: Mapping[str, object] | None = None) -> dict[str, object]:
    """Python, library versions, platform, processors, GPUs (where torch is loaded), and the sandbox's own report."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _DISTRIBUTIONS},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "cpus_usable": usable_cores(),
        "gpus": _gpus(),
        "sandbox": dict(sandbox) if sandbox is not None else None,
        "code": code_revision(_PACKAGE / "__init__.py"),
    }


def code_revision(tracked: Path) -> dict[str, object]:
    """Revision of the git checkout that tracks the file `tracked`, whether it is dirty, and a hash of what differs.

    Where the code is not in a checkout (an installed wheel, no git) the revision is "unknown", with the reason. The
    file must be tracked itself: a wheel in a virtual environment may lie inside the checkout of another project.
    """
    here = tracked.parent
    try:
        _git(here, "ls-files", "--error-unmatch", tracked.name)
        revision = _git(here, "rev-parse", "HEAD").decode().strip()
        top = Path(_git(here, "rev-parse", "--show-toplevel").decode().strip())
        difference = hashlib.sha256(_git(top, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv"))
        new = [n for n in _git(top, "ls-files", "--others", "--exclude-standard", "-z").decode().split("\0") if n]
        dirty = bool(_git(top, "status", "--porcelain"))
    except FileNotFoundError:
        return {"revision": "unknown", "reason": "git is not installed"}
    except subprocess.CalledProcessError as error:
        stderr = error.stderr.decode(errors="replace").strip().splitlines()
        return {"revision": "unknown", "reason": stderr[0] if stderr else f"git failed with code {error.returncode}"}
    for name in sorted(new):
        difference.update(name.encode() + _content(top / name))
    return {"revision": revision, "dirty": dirty, "diff_sha256": difference.hexdigest()[:16] if dirty else None}


def _git(folder: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout


def _content(path: Path) -> bytes:
    # Untracked files may be links, large dumps, or gone by now; their names and sizes still tell two states apart.
    if not path.is_file():
        return b"gone"
    size = path.stat().st_size
    return path.read_bytes() if size <= 1 << 20 else str(size).encode()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
