#!/bin/sh
# Install the system packages that FFCV is built with and the Fashion-MNIST images, where this user may; else print the
# command that does. Never fails: without them fastdhm loads images through torch and downloads the data set.
PACKAGES="g++ make python3-dev python3-venv pkg-config libopencv-dev libturbojpeg0-dev dataset-fashion-mnist"

missing=""
if command -v dpkg-query >/dev/null 2>&1; then
    for package in $PACKAGES; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
    done
else
    missing=" $PACKAGES"
fi
[ -n "$missing" ] || exit 0

install="apt-get install --yes --no-install-recommends$missing"
by_hand() {
    echo "fastdhm: not installed:$missing"
    echo "fastdhm: $1. To have FFCV's fast loader and the data set, run this and then 'make -B setup':"
    echo "    sudo apt-get update && sudo $install"
    echo "fastdhm: going on without: the torch loader will feed the images"
    exit 0
}
command -v apt-get >/dev/null 2>&1 || by_hand "this is no Debian or Ubuntu"
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null 2>&1; }; then
    as_root="sudo"
else
    by_hand "this user may not install packages"
fi
echo "fastdhm: installing$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq && $as_root $install -qq >/dev/null || by_hand "apt-get failed"
