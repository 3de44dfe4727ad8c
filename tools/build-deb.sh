#!/bin/sh
# Builds the Debian packages of what git knows, of a copy in a folder of its own: nothing is
# written to the sources. Any user may do it.
#
#   tools/build-deb.sh FOLDER     the packages are in FOLDER then; none are built anew if no
#                                 file has changed since
#
# Needs tools/install-deps.sh package.
set -eu

cd "$(dirname "$0")/.."
folder=$1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

command -v dh >/dev/null || {
    echo 'debhelper is missing: apt-get install debhelper (or tools/install-deps.sh package)' >&2
    exit 1
}
version=$(sed -n '1s/^dac (\(.*\)) .*/\1/p' debian/changelog)
files=$folder/files
git ls-files -co --exclude-standard | while read -r f; do
    [ ! -f "$f" ] || echo "$f"
done >"$files"
stamp=$(tr '\n' '\0' <"$files" | xargs -0 sha256sum | sha256sum)
if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$folder/.stamp" "$folder/dac-$version" "$folder"/*.deb
    mkdir "$folder/dac-$version"
    tar -cf - -T "$files" | tar -C "$folder/dac-$version" -xf -
    if ! (
        cd "$folder/dac-$version"
        unset MAKEFLAGS MAKELEVEL MAKEOVERRIDES MFLAGS BUILD
        export DEB_BUILD_OPTIONS="${DEB_BUILD_OPTIONS:-parallel=$(nproc)}"
        dpkg-buildpackage --build=binary --no-sign
    ) >"$folder/build.log" 2>&1; then
        tail -n 40 "$folder/build.log" >&2
        echo "the package could not be built: $folder/build.log" >&2
        exit 1
    fi
    echo "$stamp" >"$folder/.stamp"
fi
ls "$folder"/*.deb
