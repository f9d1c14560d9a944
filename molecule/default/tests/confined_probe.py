# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try every privileged action, and print {action: "done" or the name of the error} as JSON.

Runs in place of the forwarder, as its user and with its unit's hardening; the argument is the archive.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import sys

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
IP_TRANSPARENT = 19  # linux/in.h
PER_LINUX32 = 8  # linux/personality.h
MIN_DESCRIPTORS = 8192  # the default is 1024 (systemd-system.conf(5)); a container may allow less than the unit asks
STATUS_OF_INIT = "/proc/1/status"


def system_call(function, *arguments):
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "")


def transparent(address, port):
    with socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        sock.bind((address, port))


def written(path):
    with open(path, "w", encoding="ascii") as stream:
        stream.write("4")


def set_user_id(path):
    with open(path, "w", encoding="ascii"):
        os.chmod(path, 0o4755)


def read(path):
    with open(path, "rb") as stream:
        return stream.read()


def pipes(archive):
    """Open as many pipes of the forwarder's sizes as it uses, all at once."""
    sys.path.insert(0, os.path.realpath(archive))
    from l4proxy._forwarder.tcp import splice

    most = splice.most_pipes(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    pool = splice.PipePool(most)
    taken = sum(pipe.size for pipe in iter(pool.take, None)) // splice.PIPE_SIZE
    if taken < most:
        raise OSError(errno.EPERM, f"{taken} of {most}")


def descriptors():
    """Open as many descriptors as the limit allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    held = [os.dup(0) for _one in range(limit - len(os.listdir("/proc/self/fd")))]
    for number in held:
        os.close(number)
    if limit < MIN_DESCRIPTORS:
        raise OSError(errno.EMFILE, f"only {limit}")


ALLOWED = {
    "bind to a foreign address": lambda: transparent("203.0.113.9", 0),
    "bind to a port below 1024": lambda: transparent("0.0.0.0", 1),
    "open its descriptors": descriptors,
    "ask the kernel for routes": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "open its pipes": lambda: pipes(sys.argv[1]),
}
# Only actions that the container itself permits, so that the control (without the unit) can perform them.
FORBIDDEN = {
    "become root": lambda: os.setuid(0),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "mount a file system": lambda: system_call(libc.mount, b"none", b"/mnt", b"tmpfs", 0, None),
    "create a mount namespace": lambda: system_call(libc.unshare, CLONE_NEWNS),
    "create a user namespace": lambda: system_call(libc.unshare, CLONE_NEWUSER),
    "map writable and executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
    "change the personality": lambda: system_call(libc.personality, PER_LINUX32),
    "raise the nice value": lambda: os.nice(1),  # a test run may have a higher one than 0
    "write a system file": lambda: written("/etc/l4proxy/written"),
    "create a set-user-id file": lambda: set_user_id("/tmp/set-user-id"),
    "read the status of another user's process": lambda: read(STATUS_OF_INIT),
    "list the home of root": lambda: os.listdir("/root"),
}


def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"


if __name__ == "__main__":
    outcomes = {name: outcome(attempt) for name, attempt in {**ALLOWED, **FORBIDDEN}.items()}
    print(json.dumps({"allowed": list(ALLOWED), "outcomes": outcomes}))
