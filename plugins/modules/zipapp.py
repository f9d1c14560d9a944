# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: zipapp
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Install the l4proxy archive on a host
description:
  - Builds the C(l4proxy) command from this collection as one executable archive that needs only python3, and copies
    it to the host. Its name contains its version and checksum.
  - The same sources produce the same bytes on every controller.
  - The link C(l4proxy.pyz) in the same directory points to the current archive and is changed last. Earlier archives
    stay, because a running program still reads from its archive.
  - The link C(previous.pyz) points to the archive before the last change; the playbook C(roll_back) goes back to it.
options:
  directory:
    description: The directory on the host. It must exist.
    type: path
    required: true
extends_documentation_fragment:
  - trueip.l4proxy.attributes.action
"""

EXAMPLES = r"""
- name: Install the l4proxy archive
  trueip.l4proxy.zipapp:
    directory: /usr/local/lib/l4proxy
"""

RETURN = r"""
path:
  description: The archive on the host.
  returned: success
  type: str
  sample: /usr/local/lib/l4proxy/l4proxy-0.1.0-0a1b2c3d.pyz
link:
  description: The link to the current archive.
  returned: success
  type: str
  sample: /usr/local/lib/l4proxy/l4proxy.pyz
version:
  description: The version of the collection that built it.
  returned: success
  type: str
  sample: 0.1.0
"""
