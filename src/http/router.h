/*
 * Finds the row of the routing table that serves a path. Segments are split before they
 * are decoded, so an encoded slash stays inside its segment. Pure.
 */
#ifndef DAC_HTTP_ROUTER_H
#define DAC_HTTP_ROUTER_H

#include "http/http.h"

#define ROUTE_ARGS_MAX 4

struct route_match {
    const struct http_route *route; /* NULL: no such path, or the method is not allowed */
    unsigned allowed; /* methods of all rows with that path; 0: no such path */
    const char *args[ROUTE_ARGS_MAX]; /* point into `segments` */
    unsigned arg_count;
};

/* `path` is raw, checked, without query. `segments` has room for strlen(path) + 1 bytes
 * and is filled with the decoded segments. */
void router_find(const struct http_route *routes, size_t n, enum http_method method,
                 const char *path, char *segments, struct route_match *out);
/* Appends "GET, HEAD, OPTIONS" for a mask. */
void router_put_allow(struct buf *b, unsigned methods);

#endif
