#!/bin/sh
# Prints a C file that holds SQL files as text (interface: src/store/migrations.h).
#
#   tools/embed-sql.sh sqlite src/store/migrations/sqlite/001_initial.sql ...
#
# Files called NNN_name.sql, from 1 without a gap, are the migrations; another one, name.sql,
# becomes the string store_sql_KIND_name.
set -eu

kind=$1
shift

text() {
    # A question mark is escaped because C17 still knows trigraphs.
    sed 's/[\\"?]/\\&/g; s/	/\\t/g; s/.*/     "&\\n"/' "$1"
}

echo "/* Made by tools/embed-sql.sh from src/store/migrations/$kind/. */"
echo '#include "store/migrations.h"'
echo
echo '#pragma GCC diagnostic ignored "-Woverlength-strings"'
echo
echo "const struct migration store_migrations_${kind}[] = {"
count=0
for file in $(printf '%s\n' "$@" | sort -t/ -k5); do
    base=$(basename "$file" .sql)
    case $base in
    [0-9]*) ;;
    *) continue ;;
    esac
    name=${base#*_}
    number=$(printf '%s' "${base%%_*}" | sed 's/^0*//')
    count=$((count + 1))
    if [ "$number" != "$count" ] || [ "$name" = "$base" ]; then
        echo "$file: expected number $count, as in $(printf %03d $count)_name.sql" >&2
        exit 1
    fi
    printf '    {%d, "%s",\n' "$number" "$name"
    text "$file"
    echo '    },'
done
[ "$count" -gt 0 ] || echo '    {0, NULL, NULL},'
echo '};'
echo "const size_t store_migrations_${kind}_count = $count;"
for file in "$@"; do
    base=$(basename "$file" .sql)
    case $base in
    [0-9]*) continue ;;
    esac
    echo
    echo "const char store_sql_${kind}_${base}[] ="
    text "$file"
    echo '    ;'
done
