/*
 * Routing: a linear walk over a small table, see router.h. Of two rows that match the
 * same path and method, the first one wins.
 */
#include "http/router.h"

#include <string.h>

#include "http/target.h"

#define SEGMENTS_MAX 16

struct path {
    const char *segment[SEGMENTS_MAX];
    unsigned count;
    bool valid;
};

/* Splits and decodes into `to`. A single trailing slash is dropped. */
static struct path split(const char *path, char *to)
{
    struct path p = {.valid = path[0] == '/'};

    path++;
    while (p.valid && *path) {
        size_t n = strcspn(path, "/");
        if (p.count == SEGMENTS_MAX) {
            p.valid = false;
            break;
        }
        p.segment[p.count++] = to;
        to += target_decode(to, path, n, false) + 1;
        path += n + (path[n] == '/');
    }
    return p;
}

static bool matches(const char *pattern, const struct path *p, struct route_match *m)
{
    m->arg_count = 0;
    pattern++;
    for (unsigned i = 0; i < p->count; i++) {
        size_t n = strcspn(pattern, "/");
        if (n == 0)
            return false;
        const char *seg = p->segment[i];
        if (pattern[0] == '{') {
            if (*seg == '\0' || m->arg_count == ROUTE_ARGS_MAX)
                return false;
            m->args[m->arg_count++] = seg;
        } else if (strncmp(seg, pattern, n) != 0 || seg[n] != '\0') {
            return false;
        }
        pattern += n + (pattern[n] == '/');
    }
    return *pattern == '\0';
}

void router_find(const struct http_route *routes, size_t n, enum http_method method,
                 const char *path, char *segments, struct route_match *out)
{
    struct path p = split(path, segments);
    unsigned wanted = method == HTTP_HEAD ? HTTP_GET | HTTP_HEAD : (unsigned)method;

    *out = (struct route_match){0};
    for (size_t i = 0; i < n && p.valid; i++) {
        struct route_match m = {0};
        if (!matches(routes[i].pattern, &p, &m))
            continue;
        out->allowed |= routes[i].methods | HTTP_OPTIONS;
        if (routes[i].methods & HTTP_GET)
            out->allowed |= HTTP_HEAD;
        if (!out->route && (routes[i].methods & wanted)) {
            out->route = &routes[i];
            out->arg_count = m.arg_count;
            memcpy(out->args, m.args, sizeof(m.args));
        }
    }
}

void router_put_allow(struct buf *b, unsigned methods)
{
    static const char *const names[] = {"GET",   "HEAD",   "POST",   "PUT",
                                        "PATCH", "DELETE", "OPTIONS"};
    const char *comma = "";

    for (unsigned i = 0; i < DAC_ARRAY_LEN(names); i++) {
        if (!(methods & 1u << i))
            continue;
        buf_puts(b, comma);
        buf_puts(b, names[i]);
        comma = ", ";
    }
}
