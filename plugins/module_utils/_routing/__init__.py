# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The routing engine: gives a host the rules, routes, marks and sysctls that its JSON documents list.

Standard library, and pyroute2 in netlink. document: what a host must have. host: files, commands, sysctls. netlink,
marks: reading and writing the kernel's tables and packet filters. reconcile: brings a host to its documents. keeper:
does so again whenever something changes. doctor: diagnoses the path. It imports neither Ansible nor the forwarder.
"""
