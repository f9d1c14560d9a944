#!/bin/sh
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Run by mmdebstrap with the new root as $1, after its packages are installed and while it still has the network.
set -eu
root=$1

# What the roles will install on the lab's hosts, which have no network but the lab's: a small local repository. apt-get
# update, install and check mode then behave as they do on a host with a mirror.
repo=/var/lib/l4proxy-lab/packages
# firewalld and ufw are what the chaos tests set against the keeper.
chroot "$root" apt-get install --yes --no-install-recommends --download-only python3-pyroute2 iptables keepalived frr \
    frr-pythontools firewalld ufw
mkdir -p "$root$repo"
mv "$root"/var/cache/apt/archives/*.deb "$root$repo"
for deb in "$root$repo"/*.deb; do
    chroot "$root" dpkg-deb --field "$repo/${deb##*/}"
    echo "Filename: ./${deb##*/}"
    echo "Size: $(stat --format %s "$deb")"
    echo "SHA256: $(sha256sum "$deb" | cut --delimiter ' ' --fields 1)"
    echo
done > "$root$repo/Packages"
rm --force "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap
echo "deb [trusted=yes lang=none] file:$repo ./" > "$root/etc/apt/sources.list"
rm --recursive --force "$root"/var/lib/apt/lists/*
chroot "$root" apt-get update

# A container has no console, seat or clock of its own, and periodic jobs would disturb a measurement.
for unit in getty.target console-getty.service getty@.service serial-getty@.service systemd-logind.service \
    systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer logrotate.timer man-db.timer; do
    ln --symbolic --force /dev/null "$root/etc/systemd/system/$unit"
done

# Test servers: a scenario starts them where it wants them. The preset counts if systemd takes this for a first boot.
mkdir -p "$root/etc/systemd/system-preset"
printf 'disable nginx.service\ndisable nftables.service\n' > "$root/etc/systemd/system-preset/00-lab.preset"
rm --force "$root/etc/systemd/system/multi-user.target.wants/nginx.service" "$root/etc/nginx/sites-enabled/default"

: > "$root/etc/hostname"
rm --recursive --force "$root"/var/cache/apt/*.bin "$root"/var/log/apt "$root"/var/log/*.log "$root"/usr/share/doc/* \
    "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/*
