"""Numbers of the system calls that the sandbox allows, makes itself, or tries in its self-test, by architecture.

A row is `name:x86-64:aarch64`; "-" where an architecture has no such call (aarch64 has only the newer forms, such as
`openat` for `open`). The x86-64 numbers are the kernel's own table, those of aarch64 its generic one. Imports the
standard library only: the fork-server loads it without the package's dependencies.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

_ROWS = """
    read:0:63 write:1:64 close:3:57 fstat:5:80 poll:7:- lseek:8:62 mmap:9:222 mprotect:10:226 munmap:11:215 brk:12:214
    rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 ioctl:16:29 pread64:17:67 readv:19:65 writev:20:66
    select:23:- sched_yield:24:124 mremap:25:216 madvise:28:233 nanosleep:35:101 getpid:39:172 exit:60:93 uname:63:160
    fcntl:72:25 getcwd:79:17 gettimeofday:96:169 getrusage:98:165 sysinfo:99:179 times:100:153 getuid:102:174
    getgid:104:176 geteuid:107:175 getegid:108:177 getppid:110:173 sigaltstack:131:132 gettid:186:178 time:201:-
    futex:202:98 sched_getaffinity:204:123 restart_syscall:219:128 clock_gettime:228:113 clock_getres:229:114
    clock_nanosleep:230:115 exit_group:231:94 pselect6:270:72 ppoll:271:73 getrandom:318:278 rseq:334:293

    open:2:- stat:4:- lstat:6:- access:21:- fsync:74:82 fdatasync:75:83 ftruncate:77:46 rename:82:- unlink:87:-
    readlink:89:- getdents64:217:61 openat:257:56 newfstatat:262:79 unlinkat:263:35 renameat:264:38 readlinkat:267:78
    faccessat:269:48 statx:332:291 faccessat2:439:439

    seccomp:317:277 capset:126:91 landlock_create_ruleset:444:444 landlock_add_rule:445:445
    landlock_restrict_self:446:446

    creat:85:- truncate:76:45 mkdir:83:- mkdirat:258:34 symlink:88:- symlinkat:266:36 link:86:- linkat:265:37
    mknod:133:- mknodat:259:33 chdir:80:49 fchdir:81:50 chmod:90:- fchmodat:268:53 chown:92:- fchownat:260:54
    utimensat:280:88 setxattr:188:5 openat2:437:437 renameat2:316:276 name_to_handle_at:303:264
    open_by_handle_at:304:265 socket:41:198 socketpair:53:199 fork:57:- vfork:58:- clone:56:220 clone3:435:435
    execve:59:221 execveat:322:281 kill:62:129 tkill:200:130 tgkill:234:131 rt_sigqueueinfo:129:138 pidfd_open:434:434
    pidfd_send_signal:424:424 pidfd_getfd:438:438 ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271
    shmget:29:194 msgget:68:186 semget:64:190 mq_open:240:180 memfd_create:319:279 memfd_secret:447:447 unshare:272:97
    setns:308:268 mount:165:40 pivot_root:155:41 chroot:161:51 io_uring_setup:425:425 bpf:321:280 userfaultfd:323:282
    perf_event_open:298:241 keyctl:250:219 setrlimit:160:164 prlimit64:302:261 prctl:157:167 personality:135:92
    setsid:112:157 setuid:105:146 setgroups:116:159 alarm:37:- setitimer:38:103 timer_create:222:107
    sched_setaffinity:203:122 setpriority:141:140 inotify_init1:294:26 eventfd2:290:19 dup:32:23
"""

UNFILTERED = frozenset({335, 336})
"""uretprobe and uprobe on x86-64, which the kernel shows to no filter; without a probe they do nothing (SIGILL, ENXIO)."""


@dataclass(frozen=True)
class Architecture:
    """One machine's table."""

    machine: str
    """As `uname -m` has it."""
    audit: int
    """What the kernel calls it in a seccomp filter's data."""
    numbers: dict[str, int]

    def some(self, names: str) -> dict[str, int]:
        """The numbers of those calls among `names` (separated by blanks) that this architecture has."""
        return {name: self.numbers[name] for name in names.split() if name in self.numbers}


def _table(column: int) -> dict[str, int]:
    rows = (row.split(":") for row in _ROWS.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


ARCHITECTURES = {
    "x86_64": Architecture("x86_64", 0xC000003E, _table(1)),
    "aarch64": Architecture("aarch64", 0xC00000B7, _table(2)),
}


def this_architecture() -> Architecture | None:
    """The table of this machine, None where there is none."""
    return ARCHITECTURES.get(platform.machine())
