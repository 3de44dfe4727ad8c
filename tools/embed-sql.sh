#!/bin/sh
# Prints a C file that holds numbered SQL files as text (interface: src/store/migrations.h).
#
#   tools/embed-sql.sh sqlite src/store/migrations/sqlite/001_initial.sql ...
#
# File names are NNN_name.sql, from 1 without a gap.
set -eu

kind=$1
shift

echo "/* Made by tools/embed-sql.sh from src/store/migrations/$kind/. */"
echo '#include "store/migrations.h"'
echo
echo '#pragma GCC diagnostic ignored "-Woverlength-strings"'
echo
echo "const struct migration store_migrations_${kind}[] = {"
count=0
for file in $(printf '%s\n' "$@" | sort -t/ -k5); do
    base=$(basename "$file" .sql)
    name=${base#*_}
    number=$(printf '%s' "${base%%_*}" | sed 's/^0*//')
    count=$((count + 1))
    if [ "$number" != "$count" ] || [ "$name" = "$base" ]; then
        echo "$file: expected number $count, as in $(printf %03d $count)_name.sql" >&2
        exit 1
    fi
    printf '    {%d, "%s",\n' "$number" "$name"
    # A question mark is escaped because C17 still knows trigraphs.
    sed 's/[\\"?]/\\&/g; s/	/\\t/g; s/.*/     "&\\n"/' "$file"
    echo '    },'
done
[ "$count" -gt 0 ] || echo '    {0, NULL, NULL},'
echo '};'
echo "const size_t store_migrations_${kind}_count = $count;"
