# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy check FILE``: check whether the forwarder would accept a config.

It imports everything that the forwarder imports, so it also detects a broken archive.
"""

from __future__ import annotations

import resource
import sys

from ..config import config
from . import listeners


def run(path):
    """Print "ok: ..." and return 0, or print every error on a line of its own and return 1 (exit statuses)."""
    if hasattr(sys.stdout, "reconfigure"):  # escape characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        loaded = config.load_file(path)
    except config.ConfigError as error:
        sys.stdout.write("".join(f"{line}\n" for line in error.errors))
        return 1
    faults = list(unusable_authorities(loaded))
    if faults:
        sys.stdout.write("".join(f"{line}\n" for line in faults))
        return 1
    # The hard limit, because the soft limit of a shell is much lower than the service's.
    too_many = listeners.beyond_limit(loaded, listeners.slots_of(loaded), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if too_many:
        sys.stdout.write(f"{too_many}\n")
        return 1
    sys.stdout.write(f"ok: {path}: {summary(loaded)}\n")
    return 0


def unusable_authorities(loaded):
    """Yield a sentence for each service whose certificate authorities cannot be loaded; a Config has only the path."""
    for index, service in enumerate(loaded.services):
        tls = service.health.tls
        if tls is None:
            continue
        from ..backends import health_tls  # imports ssl

        try:
            health_tls.context(tls.verify, tls.ca_file)
        except OSError as error:
            reason = error.strerror or error
            yield f"services[{index}].health.tls.ca_file: {tls.ca_file} cannot be loaded: {reason}"


def summary(loaded):
    """Return the number of services, listen addresses and backends of a Config, in words."""
    counts = (
        (len(loaded.services), "service"),
        (sum(len(service.listen) for service in loaded.services), "listen address"),
        (sum(len(service.backends) for service in loaded.services), "backend"),
    )
    return ", ".join(f"{count} {noun}{_plural(noun) if count != 1 else ''}" for count, noun in counts)


def _plural(noun):
    return "es" if noun.endswith("s") else "s"
