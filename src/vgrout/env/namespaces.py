"""The optional wrap of the fork-server: namespaces of its own for users, processes, network, IPC, host name and groups.

Entered once, before anything is loaded, so that no child pays for it. A child that got past every other layer would still
find no process outside its own fork-server, no network interface that is up, and no shared memory of the host. Needs a
kernel that lets an ordinary user make user namespaces; some distributions and container runtimes do not. Imports the
standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_USER, _PID, _NET, _IPC, _UTS, _CGROUP = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000
_PR_SET_PDEATHSIG = 1


def enter() -> None:
    """Put the calling process, which must have one thread, into new namespaces; it goes on as their first process.

    The process that called stays outside, waits, and ends as the first process does; killing it kills all inside.
    OSError where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_USER | _PID | _NET | _IPC | _UTS | _CGROUP) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"namespaces: {os.strerror(number)}")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    outside = os.getpid()
    pid = os.fork()
    if pid > 0:
        os.closerange(3, 65536)  # the control socket must close with the process inside
        _, status = os.waitpid(pid, 0)
        os._exit(min(max(os.waitstatus_to_exitcode(status), 0), 255) if os.WIFEXITED(status) else 1)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "namespaces: no signal for the death of the process outside")
    if not Path(f"/proc/{outside}").exists():  # /proc is still the host's
        os._exit(1)


def refused() -> str:
    """Why this machine does not let this process make such namespaces; "" where it does. Tried in a process of its own."""
    command = [sys.executable, "-s", "-S", "-P", __file__]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["no reason was given"])[-1]


if __name__ == "__main__":
    enter()
