#!/bin/sh
# Writes what the settings table says into the sample configuration and the manual page.
#
#   tools/update-manual.sh DACCTL     (make manual)
set -eu

dacctl=$1
page=docs/man/dac.conf.5

"$dacctl" config sample >etc/dac.conf.sample.new
mv etc/dac.conf.sample.new etc/dac.conf.sample

"$dacctl" config manual >"$page.settings"
awk -v settings="$page.settings" '
    /^\.\\" end$/ { skip = 0 }
    !skip { print }
    /^\.\\" begin$/ { skip = 1; while ((getline line <settings) > 0) print line }
' "$page" >"$page.new"
rm "$page.settings"
mv "$page.new" "$page"
