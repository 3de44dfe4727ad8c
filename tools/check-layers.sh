#!/bin/sh
# Fails on an include against the order of the layers, on one that names no layer, on a
# library that shared memory must not know, and on files of more than 800 lines.
#
#   base < shm < config, http, store, upstream (not each other) < flight < api < process
#
#   tools/check-layers.sh FILE...      (paths from the root of the tree)
set -eu

awk '
BEGIN {
    rank["base"] = 0; rank["shm"] = 1
    rank["config"] = rank["http"] = rank["store"] = rank["upstream"] = 2
    rank["flight"] = 3; rank["api"] = 4; rank["process"] = 5
}
function complain(text) {
    printf "%s:%d: %s\n", FILENAME, FNR, text
    bad = 1
}
FNR == 1 {
    layer = ""
    n = split(FILENAME, part, "/")
    if (part[1] == "shm" && n > 1) layer = "shm"
    else if (part[1] == "src" && n > 2) layer = part[2]
    product = part[1] == "shm" || part[1] == "src"
    if (layer != "" && !(layer in rank)) complain("folder " layer " is no known layer")
}
FNR == 801 { complain("more than 800 lines: split it") }
layer == "shm" && /^[ \t]*#[ \t]*include[ \t]*<(event|curl|sqlite3|libpq|json|openssl|nghttp2|malloc)/ {
    complain("shared memory knows no such library: " $0)
}
product && /^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, quoted, "\"")
    if (quoted[2] == "config.h") {
        if (layer == "config") complain("finds config/config.h, not what configure wrote")
        next
    }
    split(quoted[2], to, "/")
    if (!(to[1] in rank)) complain("not the path of a layer: " $0)
    else if (layer in rank && to[1] != layer && rank[to[1]] >= rank[layer])
        complain(layer " must not use " to[1] ": " $0)
}
END { exit bad }
' "$@"
