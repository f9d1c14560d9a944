# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-test takes for get-pip.py: installs pip from the wheel beside this file, without a download."""

from __future__ import annotations

import glob
import os
import runpy
import sys

DIRECTORY = os.path.dirname(os.path.abspath(__file__))

wheels = glob.glob(os.path.join(DIRECTORY, "pip-*.whl"))
wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.path[:0] = wheels
sys.argv = ["pip", "install", "--no-index", "--find-links", DIRECTORY, *wanted]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
