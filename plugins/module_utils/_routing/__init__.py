# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The routing engine: which rules, routes, marks and sysctls a host must have, and how it gets and keeps them.

Walk it as data: ``document`` (JSON → dataclasses of ``model``) → ``engine`` reads what the host has (``kernel``,
``nft``, ``sysctl``) → ``plan`` (pure) says what to change, in which order → ``engine`` does it, or undoes it.
``keeper`` does the same at boot. Nothing in here knows Ansible.
"""
