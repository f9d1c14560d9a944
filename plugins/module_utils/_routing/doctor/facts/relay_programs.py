# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs that accept connections for a server and connect to it from their own address, with the remedy for each."""

from __future__ import annotations

HOST_NETWORK = "run the container in the host's network (--network=host)"
DOCKER = f"{HOST_NETWORK}, or let Docker translate instead (iptables and ip6tables: true, userland-proxy: false)"
ROOTLESS = f"{HOST_NETWORK}, or use another port handler (--network=pasta)"
DIRECT = "let the server itself listen on that port"
STUNNEL = f"{DIRECT}, or let stunnel send the client's address (transparent = source, or protocol = proxy)"
SOCKET_PROXY = f"{DIRECT}, or pass the socket itself to the server instead of systemd-socket-proxyd"
# By the program's name: that of its file, or its first 15 characters, which the kernel reports.
REMEDIES = {
    "docker-proxy": DOCKER,
    "rootlesskit": f"{HOST_NETWORK}, or use another port handler (rootlesskit: --port-driver=implicit with pasta)",
    "rootlessport": ROOTLESS,
    "slirp4netns": ROOTLESS,
    "dockerd": "publish the port of the Swarm service with mode: host; its ingress network hides the clients",
    "kube-proxy": "set externalTrafficPolicy: Local for that service, or run the pod in the host's network",
    "socat": DIRECT,
    "ssh": DIRECT,
    "autossh": DIRECT,
    "redir": DIRECT,
    "rinetd": DIRECT,
    "stunnel": STUNNEL,
    "stunnel4": STUNNEL,
    "systemd-socket-": SOCKET_PROXY,
    "systemd-socket-proxyd": SOCKET_PROXY,
}
