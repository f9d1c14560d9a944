# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The doctor: what is wrong with the path on this host, why it matters here, and what to do.

``gather`` looks at the host once and makes ``facts.Facts``; each check in ``registry`` is a pure function of those
facts and yields findings; ``report`` orders and prints them. ``Facts`` of a document that is not applied yet serve the
roles before their first change; then only those checks run that make sense so early. It knows reconcile and all that
reconcile knows, but not the keeper.

``l4proxy doctor --json`` prints

    {"schema": 1, "failed": 1, "warned": 0,
     "findings": [{"id": "rp_filter", "status": "fail", "subject": "eth1", "what": "...", "why": "...", "fix": "..."}]}

``status`` is fail, warn, skip or ok; ``why`` and ``fix`` are empty for skip and ok. The order is that of the text: what
is wrong first, and causes before their symptoms.
"""
