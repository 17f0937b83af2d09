#!/usr/bin/env bash
# Puts Debian's headless Chromium, the libraries that this machine lacks and a Chinese font into a folder, without root:
# fetch_chromium.sh FOLDER, which then has a program `chromium`. Where there is no such package, as on Ubuntu, that program
# starts the browser of the machine.
set -euo pipefail
folder=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$folder"
shared=(-q -y --no-install-recommends --download-only -o "Dir::Cache=$work" -o "Dir::Cache::Archives=$work/archives"
    -o Debug::NoLocking=1 -o APT::Sandbox::User=)
packages=(chromium-headless-shell fontconfig-config fonts-dejavu-core fonts-wqy-microhei)
# A fresh image has no lists of packages, and those of root cannot be renewed by another user.
apt-get "${shared[@]}" --reinstall install "${packages[@]}" || {
    shared+=(-o "Dir::State::Lists=$work/lists")
    apt-get "${shared[@]}" update
    apt-get "${shared[@]}" --reinstall install "${packages[@]}"
} || {
    installed=$(command -v google-chrome || command -v chromium) || {
        echo "neither the package ${packages[0]} nor google-chrome or chromium is to be had" >&2
        exit 1
    }
    echo "no package ${packages[0]} here: the tests use $installed" >&2
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$installed" >"$folder/chromium"
    chmod +x "$folder/chromium"
    exec "$folder/chromium" --version
}
for archive in "$work"/archives/*.deb; do
    dpkg -x "$archive" "$folder/root"
done
sed "s|<dir>/usr/share/fonts</dir>|<dir>$folder/root/usr/share/fonts</dir>|; s|/var/cache/fontconfig|$folder/fontcache|
    s|<include ignore_missing=\"yes\">conf.d|<include ignore_missing=\"yes\">$folder/root/etc/fonts/conf.d|" \
    "$folder/root/etc/fonts/fonts.conf" >"$folder/fonts.conf"
libraries="$folder/root/usr/lib/$(uname -m)-linux-gnu"
cat >"$folder/chromium" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$libraries:$folder/root/lib/$(uname -m)-linux-gnu:$libraries/pulseaudio"
export FONTCONFIG_FILE="$folder/fonts.conf"
exec "$folder/root/usr/lib/chromium/chromium-headless-shell" "\$@"
END
chmod +x "$folder/chromium"
"$folder/chromium" --version
