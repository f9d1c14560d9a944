# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's configuration for the site that ``make docs`` builds. Nothing here asks the network."""

from __future__ import annotations

import posixpath
from urllib.parse import urlsplit

from docutils import nodes

project = "trueip.l4proxy"
copyright = "2026, The trueip.l4proxy authors"
title = "trueip.l4proxy"
html_title = "trueip.l4proxy: an IP-transparent layer-4 reverse proxy"
html_short_title = "trueip.l4proxy"

extensions = ["sphinx_antsibull_ext"]
exclude_patterns = []
default_role = "any"
pygments_style = "ansible"
highlight_language = "YAML+Jinja"

html_theme = "sphinx_rtd_theme"
html_theme_options = {"navigation_depth": 2, "collapse_navigation": True, "prev_next_buttons_location": None}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_use_index = False
html_copy_source = False
html_show_sourcelink = False

#: Labels of Ansible's own documentation that generated pages refer to, and where they are.
ANSIBLE = "https://docs.ansible.com/ansible/latest/"
ANSIBLE_LABELS = {
    "action_plugins": ANSIBLE + "plugins/action.html",
    "ansible_configuration_settings": ANSIBLE + "reference_appendices/config.html",
    "common_return_values": ANSIBLE + "reference_appendices/common_return_values.html",
}


def ansible_label(app, env, node, contnode):
    """Resolve a reference to a label of Ansible's documentation."""
    target = ANSIBLE_LABELS.get(node.get("reftarget"))
    return nodes.reference("", "", contnode, internal=False, refuri=target) if target else None


def guide_links(app, doctree):
    """Turn links between guides, which are written so that they work on GitHub, into links between pages."""
    for node in doctree.findall(nodes.reference):
        parts = urlsplit(node.get("refuri", ""))
        stem, suffix = posixpath.splitext(parts.path)
        if suffix == ".rst" and not (parts.scheme or parts.netloc):
            node["refuri"] = f"{stem}.html" + (f"#{parts.fragment}" if parts.fragment else "")


def setup(app):
    """Called by Sphinx."""
    app.connect("missing-reference", ansible_label)
    app.connect("doctree-read", guide_links)
    return {"parallel_read_safe": True}
