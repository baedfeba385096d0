"""Open descriptors that belong to one piece of work."""

from __future__ import annotations

import os


class Descriptors:
    """Descriptors that are closed together, whatever happens."""

    def __init__(self) -> None:
        self.open: list[int] = []

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *error: object) -> None:
        for fd in self.open:
            os.close(fd)

    def add(self, *fds: int) -> None:
        self.open.extend(fds)

    def close(self, fd: int) -> None:
        self.open.remove(fd)
        os.close(fd)
