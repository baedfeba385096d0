"""What attacks aim at, set up so that harm shows: files, processes, listeners; and the corpus in `scripts/attacks`."""

from __future__ import annotations

import os
import re
import resource
import select
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import _gate  # noqa: F401 - switches the type checks on before the package is imported
from vgrout.types import Problem

REPOSITORY = Path(__file__).parents[1]
CORPUS = Path(__file__).with_name("attacks")
WATCHED = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/"), Path.home(), REPOSITORY, REPOSITORY / "scripts")

TOTAL = Problem(
    id="total",
    difficulty="easy",
    messages=(("user", "Add the squares, and should pass all tests"),),
    asserts=tuple(
        f"assert Solution().total(nums = {nums}) == {sum(n * n for n in nums) + 7 * len(nums)}"
        for nums in ([3, 4], [1], [10, 20, 30], list(range(40)), [7] * 9, [2, 5, 11])
    ),
    setup_code="from typing import *\nimport math\n",
    func_name="Solution().total",
    canonical_solution="class Solution:\n    def total(self, nums):\n        return sum(n * n + 7 for n in nums)\n",
    starter_code="class Solution:\n    def total(self, nums: List[int]) -> int:\n        ",
)
"""A problem whose answers no attack computes."""


@dataclass(frozen=True)
class Attack:
    """One program of the corpus."""

    family: str
    name: str
    program: str

    @property
    def response(self) -> str:
        """The program as a model would answer."""
        return f"```python\n{self.program}\n```"


def corpus(values: dict[str, str]) -> list[Attack]:
    """Every attack, with `__NAME__` in its text replaced by `values["NAME"]`."""
    return _programs(sorted(CORPUS.glob("*.md")), values)


def controls() -> list[Attack]:
    """Clean programs that are correct, though they do much of what attacks do."""
    return _programs([CORPUS / "controls" / "clean.md"], {})


def _programs(files: list[Path], values: dict[str, str]) -> list[Attack]:
    attacks = []
    for file in files:
        found = re.findall(r"^## ([^\n]+)\n```python\n(.*?)^```$", file.read_text(), re.MULTILINE | re.DOTALL)
        assert len(found) == file.read_text().count("\n## "), f"{file}: an attack without a fence"
        for name, program in found:
            program = re.sub(r"__([A-Z]+)__", lambda m: values[m[1]], program)
            program = _LONG.sub(_written_out, program)
            attacks.append(Attack(file.stem, name, program))
    return attacks


_LONG = re.compile(r'"([^"\n]*<<\d+ [^"\n]*>>[^"\n]*)"')
"""Stands for a source of a size that no one wants to read: `"TEXT<<N MORE>>TEXT"`, without the quotes, MORE N times."""


def _written_out(found: re.Match[str]) -> str:
    return re.sub(r"<<(\d+) (.*?)>>", lambda m: m[2].replace("\\n", "\n") * int(m[1]), found[1])


class World:
    """Targets for the attacks; `harm()` lists what has happened to them."""

    def __enter__(self) -> World:
        self._folder = tempfile.TemporaryDirectory(prefix="vgrout-world-")
        self.target = Path(self._folder.name)
        self.answers = self.target / "answers.txt"
        self.answers.write_text("{}")
        self.victim = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.tcp, self.udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp.bind(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp.bind(("127.0.0.1", self.port))
        self.abstract_name = f"vgrout-world-{os.getpid()}"
        self.local, self.local_packets = (socket.socket(socket.AF_UNIX, kind) for kind in (1, 2))
        self.local.bind(f"\0{self.abstract_name}")
        self.local_packets.bind(f"\0{self.abstract_name}-packets")
        self.tcp.listen()
        self.local.listen()
        self.before = self._state()
        self.memory_before = peak_memory()
        return self

    def __exit__(self, *error: object) -> None:
        self.victim.kill()
        self.victim.wait()
        for end in (self.tcp, self.udp, self.local, self.local_packets):
            end.close()
        self._folder.cleanup()

    def values(self) -> dict[str, str]:
        """What the corpus' placeholders stand for."""
        return {
            "TARGET": str(self.target),
            "REPOSITORY": str(REPOSITORY),
            "GATE": str(os.getpid()),
            "VICTIM": str(self.victim.pid),
            "PORT": str(self.port),
            "ABSTRACT": self.abstract_name,
        }

    def harm(self) -> list[str]:
        """Everything that is not as it was."""
        found = []
        after = self._state()
        for name, value in self.before.items():
            if after[name] != value:
                found.append(f"{name}: {value!r} -> {after[name]!r}"[:300])
        for folder in WATCHED:
            found += [f"file {path}" for path in folder.glob("vgrout_attack*")]
        heard = select.select([self.tcp, self.udp, self.local, self.local_packets], [], [], 0)[0]
        found += [f"connection {end}" for end in heard]
        if peak_memory() - self.memory_before > 512 * 1024:
            found.append(f"parent memory grew to {peak_memory()} KiB")
        return found

    def _state(self) -> dict[str, object]:
        victim = Path(f"/proc/{self.victim.pid}")
        status = self.answers.stat() if self.answers.exists() else None
        return {
            "answers": self.answers.read_text() if status else None,
            "answers' mode and times": (status.st_mode, status.st_mtime_ns, status.st_nlink) if status else None,
            "target folder": sorted(path.name for path in self.target.iterdir()),
            "victim": (self.victim.poll(), (victim / "stat").read_text().rsplit(")", 1)[1].split()[0] != "T"),
            "victim's limits": (victim / "limits").read_text(),
            "gate's limits": Path("/proc/self/limits").read_text(),
        }


def peak_memory() -> int:
    """Peak resident KiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def children_of(pid: int) -> list[int]:
    """Process ids whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found
