"""What a student's process may do, said by the process itself before it imports any of the student's code.

Memory, CPU time and file sizes are limited by setrlimit. On Linux, Landlock (kernel 5.13 and newer) besides allows
writing below the scratch folder alone, reading nothing but Python and the system besides that folder, and no TCP. None
of it can be taken back, and child processes have it, too.
"""

import ctypes
import os
import resource
import struct
import sys
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on all processors
NO_NEW_PRIVILEGES = 38  # of prctl
PATH_BENEATH = 1
READ = 1 << 2 | 1 << 3  # read files, list folders
FIRST_ACCESSES = 13  # what ABI 1 knows, bits 0 to 12: execute, write, read, remove, make
ALL_WRITES = (1 << FIRST_ACCESSES) - 1 - READ - 1  # all of them but execute (bit 0) and reading
REFER, TRUNCATE = 1 << 13, 1 << 14  # from ABI 2, 3
TCP = 0b11  # bind, connect; from ABI 4
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev")


def limit_resources(seconds, memory, file_bytes):
    """seconds: of CPU time. memory: bytes of address space beyond what there is. file_bytes: the largest file."""
    values = {"CPU": seconds, "FSIZE": file_bytes, "CORE": 0}
    if sys.platform == "linux":
        values["AS"] = _mapped() + memory
    for name, value in values.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _mapped():
    """Bytes of address space of this process: a torch for CUDA alone may map more than a student is allowed."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def landlock_version():
    """The ABI of Landlock, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1))


def confine(scratch):
    """Allow writing below `scratch` alone, reading there, in Python and in the system. Without Landlock: nothing."""
    version = landlock_version()
    if not version:
        return
    writes = ALL_WRITES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("QQ", READ | writes, TCP)[: 16 if version >= 4 else 8]
    rules = _call(CREATE_RULESET, attributes, len(attributes), 0)
    python = {sys.prefix, sys.base_prefix, *(path for path in sys.path if "site-packages" in path)}
    for path, allowed in [(scratch, READ | writes), *((path, READ) for path in {*SYSTEM, *python})]:
        if Path(path).is_dir():
            handle = os.open(path, os.O_PATH)
            _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", allowed, handle), 0)
            os.close(handle)
    _allow_null(rules, writes)
    if ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError("no_new_privs was refused")
    _call(RESTRICT_SELF, rules, 0)
    os.close(rules)


def _allow_null(rules, writes):
    """Writing to /dev/null harms nobody."""
    handle = os.open("/dev/null", os.O_PATH)
    allowed = 1 << 1 | 1 << 2 | (writes & TRUNCATE)
    _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", allowed, handle), 0)
    os.close(handle)


def _call(number, *arguments):
    """A system call. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    result = library.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
