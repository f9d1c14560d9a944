# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab for the doctor."""

from __future__ import annotations

import pytest

from tests.kernel.doctor.clinic import raise_clinic


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    with raise_clinic("kd", tmp_path_factory) as clinic:
        yield clinic
