# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The routing engine: gives a host the rules, routes, marks and sysctls that its JSON documents list.

Standard library, and pyroute2 in netlink. document: what a host must have. host: files, commands, sysctls, conntrack.
netlink, marks: how the kernel and its packet filters are read and written. reconcile: from what is to what must be.
keeper: reconciles again whenever something changes. doctor: diagnoses the path. It knows neither Ansible nor the
forwarder.
"""
