# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from .worker_host import TcpHost


@pytest.fixture
def host(tmp_path):
    host = TcpHost(tmp_path)
    yield host
    host.close()
