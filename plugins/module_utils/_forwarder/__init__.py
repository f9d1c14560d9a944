# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwarder: relays TCP and UDP to backends, with the client's own address as the source. Standard library only.

config: what a service is. loop: events, timers, sockets, log. tcp, udp: the two relays. backends: balancing and health.
admission: who may connect, and from which source address. counters: shared memory. process: supervisor and workers.
admin: status, metrics, commands. It imports neither Ansible nor the routing engine.
"""
