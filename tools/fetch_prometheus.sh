#!/usr/bin/env bash
# Puts Debian's prometheus and promtool into a folder, without root: fetch_prometheus.sh FOLDER
set -euo pipefail
folder=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$folder"
own=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o "Dir::Cache::Archives=$work/archives" -o APT::Sandbox::User=)
cd "$work"
# A fresh image has no lists of packages, and those of root cannot be renewed by another user.
apt-get -q -o APT::Sandbox::User= download prometheus || {
    apt-get -q "${own[@]}" update
    apt-get -q "${own[@]}" download prometheus
}
dpkg -x prometheus_*.deb unpacked
install unpacked/usr/bin/prometheus unpacked/usr/bin/promtool "$folder"
