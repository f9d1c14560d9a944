#!/usr/bin/env bash
# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Install what a fresh Debian lacks:   bootstrap.sh check   for lint and unit tests
#                                      bootstrap.sh gates   also for the checks of the package
#                                      bootstrap.sh docs    also for the documentation
#                                      bootstrap.sh lab     also for namespaces, containers and molecule
#                                      bootstrap.sh bench   also for the benchmark's other proxies
# If everything is installed, it ends in a fraction of a second and needs neither root nor the network.
set -Eeuo pipefail

level=${1:-}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$root/.build
log=$build/bootstrap.log
python=/usr/bin/python3 # that of the distribution: one of a version manager may lack modules or change
requirements=$root/requirements/dev.txt
current=start

check_packages=(python3 python3-venv ca-certificates)
gate_packages=(shellcheck mmdebstrap debian-archive-keyring) # mmdebstrap: for Python versions that this machine lacks
bench_packages=(haproxy libnginx-mod-stream iperf3 wrk ethtool gcc libc6-dev mmdebstrap debian-archive-keyring)
docs_packages=(graphviz) # for the pictures
lab_packages=(
    podman runc netavark mmdebstrap debian-archive-keyring # containers and their images
    iproute2 nftables iptables conntrack procps kmod       # the network
    nginx dnsmasq-base                                     # test servers
    keepalived frr frr-pythontools                         # engines of the first tier
    curl tcpdump iputils-arping iputils-ping               # instruments
    systemd                                                # systemd-analyze
)
server_packages=(postgresql openssh-server openssh-client redis-server redis-tools dnsmasq-base) # servers that users run behind a proxy
# A machine with another mail or MySQL server keeps it, because two cannot be installed; tests leave these two out there.
[ -e /usr/sbin/sendmail ] || server_packages+=(opensmtpd)
[ -e /usr/sbin/mysqld ] || server_packages+=(mariadb-server-core)
declare -A units=([nginx]=nginx [haproxy]=haproxy [postgresql]=postgresql [openssh-server]=ssh [redis-server]=redis-server
    [opensmtpd]=opensmtpd [keepalived]=keepalived [frr]=frr)

# Messages of say() reach the caller even if the output of a step is redirected.
exec 3>&2
say() { printf 'bootstrap: %s\n' "$*" >&3; }

step() {
    current=$*
    say "$current"
}

failed() {
    say "FAILED: $current"
    if [ -s "$log" ]; then
        tail --lines 15 "$log" | sed 's/^/bootstrap: | /' >&3
        say "see $log"
    fi
    exit 1
}

die() {
    say "FAILED: $*"
    exit 1
}

as_root() {
    if [ "$(id --user)" = 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        say "this step needs root: run make as root, or install sudo"
        return 1
    fi
}

require_space() { # MEBIBYTES DIRECTORY
    local free
    free=$(df --output=avail --block-size=1M "$2" | tail --lines 1)
    [ "$free" -ge "$1" ] || die "$2 has $free MiB of free space, $1 MiB are needed; free some and run this again"
}

missing_packages() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || echo "$package"
    done
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get > /dev/null || die "this is not Debian; install these packages: ${missing[*]}"
    step "updating the package lists (apt-get update)"
    as_root apt-get update >> "$log" 2>&1
    step "installing ${missing[*]}"
    without_services env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${missing[@]}" >> "$log" 2>&1
    keep_quiet "${missing[@]}"
}

# The lab starts its own servers; those of the packages must not run on this machine, now or after a reboot.
keep_quiet() { # PACKAGES that were just installed
    local package
    command -v systemctl > /dev/null || return 0
    for package in "$@"; do
        [ -z "${units[$package]:-}" ] || as_root systemctl disable "${units[$package]}.service" >> "$log" 2>&1
    done
}

# Run a command as root while policy-rc.d keeps packages from starting services. An existing policy stays.
without_services() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [ -e "$policy" ]; then
        as_root "$@"
        return
    fi
    # Remove it when interrupted too. The path is expanded now, because the trap runs when the local variable is gone.
    # shellcheck disable=SC2064
    trap "as_root rm --force $policy" EXIT
    as_root sh -c "printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy"
    as_root "$@" || status=$?
    as_root rm --force "$policy"
    trap - EXIT
    return "$status"
}

make_venv() {
    local stamp=$build/venv/.requirements wanted
    wanted=$(cat "$requirements" <("$python" --version) | sha256sum)
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return 0
    fi
    if ! "$build/venv/bin/python" -c 'import sys' 2> /dev/null; then
        step "creating .build/venv with $("$python" --version)"
        rm --recursive --force "$build/venv"
        "$python" -m venv "$build/venv" >> "$log" 2>&1
    fi
    step "installing requirements/dev.txt into .build/venv (about a minute)"
    "$build/venv/bin/python" -m pip install --requirement "$requirements" >> "$log" 2>&1
    echo "$wanted" > "$stamp"
}

# Python and Ansible need the path ansible_collections/trueip/l4proxy; the checkout may have any name.
link_collection() {
    local parent=$build/collections/ansible_collections/trueip
    [ "$(readlink "$parent/l4proxy")" = ../../../.. ] && return 0
    mkdir --parents "$parent"
    ln --symbolic --force --no-dereference ../../../.. "$parent/l4proxy"
}

case $level in
    check) packages=("${check_packages[@]}") space=1000 ;;
    bench) packages=("${check_packages[@]}" "${lab_packages[@]}" "${server_packages[@]}" "${bench_packages[@]}") space=4000 ;;
    gates) packages=("${check_packages[@]}" "${gate_packages[@]}") space=2000 ;;
    docs) packages=("${check_packages[@]}" "${docs_packages[@]}") space=1000 ;;
    lab) packages=("${check_packages[@]}" "${lab_packages[@]}" "${server_packages[@]}") space=4000 ;;
    *)
        echo "usage: ${BASH_SOURCE[0]} check | docs | gates | lab | bench" >&2
        exit 2
        ;;
esac

mkdir --parents "$build"
exec 9> "$build/bootstrap.lock"
flock 9 # if two targets run at the same time, the second one waits and has nothing to do
: > "$log"
trap failed ERR
require_space "$space" "$build"
[ "$level" = check ] || require_space "$space" /var/lib
install_packages "${packages[@]}"
make_venv
link_collection
