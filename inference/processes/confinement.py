"""What a child process may not do, for the rest of its life.

On Linux, by the kernel's own means (prctl(2), setrlimit(2), landlock(7), seccomp(2)): it dies with its parent, gains no
privileges, opens no file outside the given folders, writes none, opens no network connection, and has bounded memory
and open files. Each means that a kernel lacks is left out; `confine` returns the names of those in force.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Environment variables that a child needs; no token or key is among them.
PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "CUDA_VISIBLE_DEVICES", "GGML_NO_BACKTRACE",
    "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "CONTEXT",
)  # fmt: skip

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

# include/uapi/linux/landlock.h
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
RULE_PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15
RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
# What Python, its libraries and the C library read.
SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/proc/self", "/proc/cpuinfo",
    "/proc/meminfo", "/proc/stat", "/proc/sys", "/sys/devices/system", "/sys/fs/cgroup", "/dev/urandom", "/dev/random",
    "/dev/null",
)  # fmt: skip

# System calls that no child needs: by architecture, numbers from the kernel's tables.
DENIED = {
    "x86_64": {
        "ptrace": 101, "mount": 165, "umount2": 166, "reboot": 169, "init_module": 175, "kexec_load": 246,
        "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "process_vm_readv": 310,
        "process_vm_writev": 311, "finit_module": 313, "setns": 308, "bpf": 321, "userfaultfd": 323,
        "perf_event_open": 298, "io_uring_setup": 425,
    },
    "aarch64": {
        "ptrace": 117, "mount": 40, "umount2": 39, "reboot": 142, "init_module": 105, "kexec_load": 104,
        "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "process_vm_readv": 270,
        "process_vm_writev": 271, "finit_module": 273, "setns": 268, "bpf": 280, "userfaultfd": 282,
        "perf_event_open": 241, "io_uring_setup": 425,
    },
}  # fmt: skip
SOCKET = {"x86_64": 41, "aarch64": 198}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AF_UNIX = 1


@dataclass(frozen=True)
class Limits:
    """What a child may use. `readable` are folders and files besides the system's own, `devices` may also be written.
    Of `listable` folders only the names of files can be read.
    `memory` (bytes) bounds private memory; None is no limit."""

    readable: Sequence[str] = ()
    devices: Sequence[str] = ()
    listable: Sequence[str] = ()
    memory: int | None = None
    open_files: int = 512

    def as_fields(self) -> dict[str, Any]:
        """For the command line of the child."""
        return asdict(self)


def environment(source: Mapping[str, str], **more: str) -> dict[str, str]:
    """The environment of a child: what it needs and no secrets."""
    return {name: source[name] for name in PASSED_ON if name in source} | more


def confine(limits: Limits, parent: int) -> list[str]:
    """Confine this process; call it before any thread is started. `parent` is the process that it dies with. Returns
    the names of the means in force."""
    if not sys.platform.startswith("linux"):
        return limit_resources(limits)
    libc = ctypes.CDLL(None, use_errno=True)
    in_force = limit_resources(limits)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # the parent ended before the line above
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return in_force
    in_force.append("no new privileges")
    if restrict_files(libc, limits):
        in_force.append("landlock")
    if restrict_system_calls(libc):
        in_force.append("seccomp")
    return in_force


def limit_resources(limits: Limits) -> list[str]:
    """Bound memory, open files and the size of written files."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_DATA: limits.memory,
    }
    for kind, value in wanted.items():
        if value is not None:
            _, most = resource.getrlimit(kind)
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, value))
    return ["resource limits"]


def restrict_files(libc: ctypes.CDLL, limits: Limits) -> bool:
    """Landlock: read what is below the given and the system's folders, execute the interpreter, write to devices."""
    abi = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if abi < 1:
        return False
    handled = RIGHTS_BY_ABI[max(known for known in RIGHTS_BY_ABI if known <= abi)]
    attribute = struct.pack("=Q", handled)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
        folders = {*SYSTEM, *prefixes, *limits.readable}
        rules = {path: READ_FILE | READ_DIR for path in folders} | dict.fromkeys(
            ("/dev/null", *limits.devices), READ_FILE | WRITE_FILE | TRUNCATE | READ_DIR | IOCTL_DEV
        )
        rules |= {path: rules.get(path, 0) | READ_DIR for path in limits.listable}
        executable = os.path.realpath(sys.executable)
        for path in (os.path.dirname(executable), "/lib", "/lib64", "/usr/lib"):  # the interpreter and ld.so
            rules[path] = READ_FILE | READ_DIR | EXECUTE
        for path, rights in rules.items():
            add_rule(libc, ruleset, path, rights & handled)
        return libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) == 0
    finally:
        os.close(ruleset)


def add_rule(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Allow `rights` below a path; a path that does not exist is left out."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not Path(path).is_dir():
            rights &= ~READ_DIR
        rule = struct.pack("=Qi", rights, descriptor)
        libc.syscall(LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def restrict_system_calls(libc: ctypes.CDLL) -> bool:
    """seccomp: system calls that no child needs, and sockets other than local ones, fail with EPERM."""
    machine = platform.machine()
    if machine not in DENIED:
        return False

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    load, equal, ret = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    allow, refuse = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | EPERM
    calls = sorted(DENIED[machine].values())
    program = [
        instruction(load, 4),  # seccomp_data.arch
        instruction(equal, AUDIT_ARCH[machine], 1, 0),
        instruction(ret, refuse),  # another architecture's numbers mean other calls
        instruction(load, 0),  # seccomp_data.nr
    ]
    # Jumps go to the last instruction; between are: socket's test (4 instructions), then "allow".
    for number, call in enumerate(calls):
        program.append(instruction(equal, call, len(calls) - number - 1 + 4, 0))
    program += [
        instruction(equal, SOCKET[machine], 0, 2),
        instruction(load, 16),  # the address family, seccomp_data.args[0]
        instruction(equal, AF_UNIX, 0, 1),
        instruction(ret, allow),
        instruction(ret, refuse),
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("=H6xQ", len(program), ctypes.addressof(code))
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0) == 0
