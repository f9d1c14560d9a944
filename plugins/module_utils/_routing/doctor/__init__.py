# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The doctor: diagnoses this host's part of the path. A finding says what is wrong, why it matters, how to fix it.

``facts.gather`` reads the host once into ``facts.model.Facts``. Each check in ``checks`` is a pure function of those
facts that yields findings; ``registry`` lists the checks in order, and ``report`` prints their findings. To add a
check, write its function in ``checks`` and its line in ``registry``. Before their first change the roles run the
``preflight`` checks against a document that is not applied yet. The doctor may import what reconcile may, but not the
keeper.

``l4proxy doctor --json`` prints

    {"schema": 1, "failed": 1, "warned": 0,
     "findings": [{"id": "rp_filter", "status": "fail", "subject": "eth1", "what": "...", "why": "...", "fix": "..."}]}

``status`` is fail, warn, skip or ok; ``why`` and ``fix`` are empty for skip and ok. The order is that of the text:
failures first, and causes before their symptoms.
"""
