# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the ``l4proxy`` archive onto a host; documented in plugins/modules/zipapp.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

LINK = "l4proxy.pyz"
# The archive before the last change of the link; the playbook roll_back goes back to it.
PREVIOUS = "previous.pyz"
COLLECTION = Path(__file__).resolve().parents[2]


class ActionModule(ActionBase):
    """Build the archive on the controller; the modules copy and file put it and its link onto the host."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the action."""
        super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec({"directory": {"type": "str", "required": True}})
        directory = arguments["directory"]
        content = _archive.archive(_archive.sources(COLLECTION))
        version = _archive.collection_version(COLLECTION)
        name = _archive.archive_name(version, content)
        path = os.path.join(directory, name)
        copied = self._copy(content, path, task_vars)
        if copied.get("failed"):
            return copied
        link = os.path.join(directory, LINK)
        current = self._target(link, task_vars)
        if current and current != name:
            kept = self._link(current, os.path.join(directory, PREVIOUS), task_vars)
            if kept.get("failed"):
                return kept
        linked = self._link(name, link, task_vars)
        return {
            **{key: linked[key] for key in ("failed", "msg") if key in linked},
            "changed": bool(copied.get("changed") or linked.get("changed")),
            "diff": [result["diff"] for result in (linked,) if result.get("diff")],
            "path": path,
            "link": link,
            "version": version,
        }

    def _copy(self, content: bytes, path: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(prefix="l4proxy-", suffix=".pyz") as local:
            local.write(content)
            local.flush()
            task = self._task.copy()
            # A diff of the collection's own code would hide the changes that matter.
            task.diff = False
            task.args = {"src": local.name, "dest": path, "owner": "root", "group": "root", "mode": "0755"}
            copy = self._shared_loader_obj.action_loader.get(
                "ansible.legacy.copy",
                task=task,
                connection=self._connection,
                play_context=self._play_context,
                loader=self._loader,
                templar=self._templar,
                shared_loader_obj=self._shared_loader_obj,
            )
            return copy.run(task_vars=task_vars)

    def _target(self, link: str, task_vars: dict[str, Any] | None) -> str | None:
        """Return where a link on the host points to, None if there is none."""
        found = self._execute_module(
            module_name="ansible.legacy.stat", module_args={"path": link, "get_checksum": False}, task_vars=task_vars
        )
        target: str | None = found.get("stat", {}).get("lnk_target")
        return target

    def _link(self, name: str, link: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        return self._execute_module(
            module_name="ansible.legacy.file",
            # "force": in check mode the archive does not exist yet, but the link to it is right.
            module_args={"src": name, "dest": link, "state": "link", "force": True, "follow": False},
            task_vars=task_vars,
        )
