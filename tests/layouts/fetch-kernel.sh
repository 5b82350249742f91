#!/usr/bin/env bash
# Puts a stock Debian kernel image and its configuration into a folder:
#
#   tests/layouts/fetch-kernel.sh FOLDER [linux-image-amd64's suite, sid]
#
# makes FOLDER/vmlinuz and FOLDER/config. Nothing is installed: apt has lists of its own here.
# Wants apt-get, dpkg-deb and Debian's keyring.
set -euo pipefail

folder=${1:?the folder to put vmlinuz and config into}
suite=${2:-sid}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

if [ -s "$folder/vmlinuz" ] && [ -s "$folder/config" ]; then
    echo "$folder has a kernel image already"
    exit
fi
mkdir -p "$folder"
folder=$(realpath "$folder")
work=$folder/packages
rm -rf "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"

apt_options=(
    -o "Dir::Etc::sourcelist=$work/sources.list"
    -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/lists"
    -o "Dir::Cache=$work/cache"
    -o APT::Architecture=amd64
    -o APT::Sandbox::User=
    -o Acquire::Languages=none
    # A mirror may be a snapshot.
    -o Acquire::Check-Valid-Until=false
)
apt-get "${apt_options[@]}" update -q >/dev/null

# The package that linux-image-amd64 depends on says the version.
image=$(apt-cache "${apt_options[@]}" depends linux-image-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
version=${image#linux-image-}
[ -n "$version" ] || { echo "no linux-image-amd64 in $suite of $mirror" >&2; exit 1; }

# The image has a package of its own since 7.x, 14 MB; before, it comes with all modules. One that
# is not signed is the same image.
for package in "linux-binary-$version" "linux-image-$version" "linux-image-$version-unsigned"; do
    if apt-cache "${apt_options[@]}" show "$package" >/dev/null 2>&1; then
        binary=$package
        break
    fi
done
echo "fetching $binary and linux-headers-$version"
cd "$work"
apt-get "${apt_options[@]}" download -q "${binary:?no package has the image}" "linux-headers-$version" >/dev/null
for package in ./*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
        tar -x -C "$work/root" --wildcards '*/vmlinuz*' '*/.config' 2>/dev/null || true
done
find "$work/root" -name 'vmlinuz*' -exec cp {} "$folder/vmlinuz" \;
find "$work/root" -name .config -exec cp {} "$folder/config" \;
rm -rf "$work"
for file in vmlinuz config; do
    [ -s "$folder/$file" ] || { echo "the packages have no $file" >&2; exit 1; }
done
sed -n '3s/^# //p' "$folder/config"
