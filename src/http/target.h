/*
 * Request targets (RFC 3986 as far as RFC 9112 needs it): checking, percent-decoding, and
 * splitting a query. Pure.
 */
#ifndef DAC_HTTP_TARGET_H
#define DAC_HTTP_TARGET_H

#include <stdbool.h>
#include <stddef.h>

/* Where the path of an origin-form or absolute-form target starts, or NULL if it is
 * neither. An absolute form without a path gets its "/" written over the authority's last
 * byte. */
char *target_path_start(char *s, size_t n);
/* What is wrong with path and query ("has …"), or NULL. */
const char *target_check(const char *s, size_t n);
/* Whether s is host[:port] without user information. */
bool target_authority_valid(const char *s, size_t n);

/* Decodes s[0..n), already checked, into `to` (n + 1 bytes; may be s itself),
 * NUL-terminated. Returns the decoded length. `plus`: '+' is a blank, as in queries. */
size_t target_decode(char *to, const char *s, size_t n, bool plus);
/* Splits and decodes a query into "name\0value\0name\0value\0" at `to`, which has room
 * for 2 * strlen(s) + 2 bytes. Returns the bytes used. */
size_t target_split_query(char *to, const char *s);

#endif
