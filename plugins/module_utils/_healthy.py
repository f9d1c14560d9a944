# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy healthy``: asks the forwarder whether this proxy should get clients; prints one sentence.

First tiers run it every second, and Python spends most of its time on imports. So the archive runs this file without
unpacking anything (plugin_utils/_archive.py), and it imports only modules that are part of the interpreter. What it
does not understand it leaves to _cli.py.
"""

import sys
from _socket import AF_UNIX, SOCK_STREAM, socket
from posix import environ
from time import monotonic, sleep

DIRECTORY = "/run/l4proxy"  # paths.RUNTIME_DIRECTORY
TIMEOUT = 0.8  # seconds; keepalived asks once a second
STARTING = 0.4  # seconds that a restarting forwarder has to listen again
RETRY = 0.02  # seconds
PROMISE, LONGEST_PROMISE = ".until", 10.0  # as in _shared/promise.py
REPLACED = "this proxy should get clients: the forwarder is being replaced by a new program"
UNHEALTHY = "this proxy should not get clients: "  # as in first_tier.py
OPTIONS = {"--service": "service", "--need-backend": "need_backend", "--socket": ""}
PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+@"  # characters that JSON needs not escape


def parse(arguments):
    """Return ({key of the request: value}, path of the socket); None if _cli.py has to parse the arguments."""
    request, path = {}, ""
    words = iter([part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])])
    for name in words:
        value = next(words, "")
        if name not in OPTIONS or not value or value.strip(PLAIN):
            return None
        if name == "--socket":
            path = value
        else:
            request[OPTIONS[name]] = value
    if request.get("need_backend", "none") not in ("none", "any", "each"):
        return None
    return request, path or default_socket()


def default_socket():
    """Return the path of the admin socket, like runtime_file.admin_socket()."""
    directory = environ.get(b"RUNTIME_DIRECTORY", b"").decode("utf-8", "surrogateescape").split(":")[0] or DIRECTORY
    return f"{directory}/admin.sock"


def ask(path, request):
    """Return (whether this proxy should get clients, sentence); values of ``request`` are inserted into JSON as is."""
    answer = _ask(path, request)
    if isinstance(answer, str):
        return (True, REPLACED) if promised(path) else (False, UNHEALTHY + answer)
    return answer


def promised(path):
    """Whether a forwarder that was healthy has said that its successor needs a moment to start."""
    try:
        with open(path + PROMISE, encoding="ascii") as stream:
            return 0 < float(stream.read()) - monotonic() <= LONGEST_PROMISE
    except (OSError, ValueError):
        return False


def _ask(path, request):
    """Return what ask() does, or why there is no answer."""
    begun = monotonic()
    line = "".join(f', "{key}": "{value}"' for key, value in request.items())
    answer = b""
    while True:
        sock = socket(AF_UNIX, SOCK_STREAM)
        try:
            sock.settimeout(TIMEOUT)
            sock.connect(path)
            sock.sendall(f'{{"op": "healthy"{line}}}\n'.encode())
            while not answer.endswith(b"\n"):
                sock.settimeout(max(begun + TIMEOUT - monotonic(), 0.001))
                data = sock.recv(65536)
                if not data:
                    raise ConnectionResetError
                answer += data
            return read(answer.decode())
        except (FileNotFoundError, ConnectionError):
            answer = b""
            if monotonic() - begun > STARTING:
                return f"no forwarder listens on {path}"
        except BlockingIOError:  # more clients than the forwarder can queue
            if monotonic() - begun > TIMEOUT:
                return "the forwarder is too busy"
        except PermissionError:
            return False, f"{UNHEALTHY}permission denied for {path}; become root or a member of its group"
        except OSError as error:
            silent = f"the forwarder does not answer within {TIMEOUT} s"
            return silent if error.errno is None else f"{path}: {error.strerror}"
        finally:
            sock.close()
        sleep(RETRY)


def read(answer):
    """Return (whether healthy, sentence) of an answer in JSON."""
    _start, found, sentence = answer.rstrip("}\n").rpartition('"sentence": "')
    if "\\" in answer or not found:  # an escaped text of a person, or an error
        import json

        document = json.loads(answer)
        return bool(document.get("healthy")), document.get("sentence") or UNHEALTHY + document["error"]
    return '"healthy": true,' in answer, sentence[:-1]


def main(arguments):
    """Print the sentence; return the exit status: 0 healthy, 1 not, None if _cli.py has to parse the arguments."""
    parsed = parse(arguments)
    if parsed is None:
        return None
    healthy, sentence = ask(parsed[1], parsed[0])
    sys.stdout.write(f"{sentence}\n")
    return 0 if healthy else 1
