# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proves which source address a backend sees: a proxy sends samples, and the backend observes them.

The proxy sends packets as if it forwarded a client, but such that no server notices them: over TCP a SYN whose
handshake is never completed, over UDP a datagram with a wrong checksum, which the backend's kernel drops. The backend
recognizes a sample by its token, even if addresses and ports were rewritten on the way:

* the token is in the TCP sequence number, or in the first four bytes of the UDP payload;
* its upper half, the run, is the same for all samples of one run, so that a socket filter finds them on a busy host.

``sample``: what is sent. ``sender``: sends it. ``observer``: recognizes it where packets arrive, where they leave, and
where a server receives them. Standard library only; like ``_probe`` it may import both engines.
"""
