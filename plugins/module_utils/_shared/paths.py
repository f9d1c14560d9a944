# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The paths of the product on a host. The roles and unit files have them too; a change here needs one there."""

from __future__ import annotations

CONFIG = "/etc/l4proxy/forwarder.json"  # of the forwarder
DOCUMENTS = "/etc/l4proxy/routing.d"  # state documents, the keeper's input
SYSCTL_MEMORY = "/var/lib/l4proxy/sysctl.json"  # values of sysctls before ours
RUNTIME_DIRECTORY = "/run/l4proxy"  # of the forwarder, if systemd gives no other
RUNTIME_FILE = f"{RUNTIME_DIRECTORY}/forwarder.json"  # what the running forwarder has loaded
ADMIN_SOCKET = f"{RUNTIME_DIRECTORY}/admin.sock"  # of the forwarder, if its config names no other one
BACKEND_STATES = f"{RUNTIME_DIRECTORY}/backends.json"  # which backends of kernel services serve, by the forwarder
BANS = f"{RUNTIME_DIRECTORY}/denied.json"  # who is banned at kernel services, by the forwarder
KEEPER_STATE = "/run/l4proxy-keeper/state.json"
DATAPATH_COUNTERS = "/run/l4proxy-keeper/datapath.json"  # of kernel services, by the keeper
# Directly in /run, which only root can write to: /run/lock is open to all, and /run/l4proxy goes with the forwarder.
ROUTING_LOCK = "/run/l4proxy-routing.lock"
