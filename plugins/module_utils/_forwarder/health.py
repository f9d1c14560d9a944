# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the backends' health from the connections themselves.

Pure; time is passed in (monotonic seconds). Without a checker, a backend that is down would cost every n-th client the
whole attempt timeout. So a backend whose connect failed is skipped for SKIP seconds; then one connection tries it
again, and while that trial is under way all others still skip it.
"""

from __future__ import annotations

SKIP = 5.0  # seconds; one trial of connect_timeout in each SKIP is what a dead backend costs


class PassiveHealth:
    """Failure memory of ``count`` backends, named by index."""

    def __init__(self, count):
        self._skip_until = [None] * count
        self.all_well = True  # what the good path looks at: nobody is being skipped

    def usable(self, index, now):
        """Whether a connection may be given to this backend: it is well, or a trial is due."""
        until = self._skip_until[index]
        return until is None or now >= until

    def chosen(self, index, now):
        """A connection was given to this backend; if it is a trial, the others wait for its outcome."""
        if self._skip_until[index] is not None:
            self._skip_until[index] = now + SKIP

    def failed(self, index, now):
        """A connect to this backend failed; returns True when it was well until now."""
        was_well = self._skip_until[index] is None
        self._skip_until[index] = now + SKIP
        self.all_well = False
        return was_well

    def succeeded(self, index):
        """A connect to this backend succeeded; returns True when it was being skipped until now."""
        if self._skip_until[index] is None:
            return False
        self._skip_until[index] = None
        self.all_well = all(until is None for until in self._skip_until)
        return True
