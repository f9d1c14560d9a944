#!/usr/bin/env bash
# Build the tarball and install it with ansible-galaxy. Then delete what a controller does not need, so that tests of the
# package fail if it depends on other files.
set -euo pipefail
cd "$(dirname "$0")/.."
out=.build/package
rm -rf "$out" .build/dist
.build/venv/bin/ansible-galaxy collection build --force --output-path .build/dist . >.build/package.log
ANSIBLE_COLLECTIONS_PATH="$PWD/$out" .build/venv/bin/ansible-galaxy collection install --force --no-deps --offline -p "$out" .build/dist/*.tar.gz >>.build/package.log
installed="$out/ansible_collections/trueip/l4proxy"
find "$installed" -mindepth 1 -maxdepth 1 \
    ! -name meta ! -name plugins ! -name roles ! -name playbooks ! -name MANIFEST.json -exec rm -rf {} +
echo "installed $(basename .build/dist/*.tar.gz) into $out"
