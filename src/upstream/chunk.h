/*
 * The quick way through the usual chunk of a chat completion, which is nearly all of a
 * stream: one piece of text and members that nobody reads. Only an object that is valid
 * JSON to its last byte and holds nothing else of interest is taken; all other chunks go
 * the general way, which decides about them.
 *
 * Pure. Process: worker; also tests and fuzzing.
 */
#ifndef DAC_UPSTREAM_CHUNK_H
#define DAC_UPSTREAM_CHUNK_H

#include <stdbool.h>
#include <stddef.h>

#include "base/bytes.h"

struct chunk {
    const char *text; /* JSON string without its quotes, borrowed; NULL: none */
    size_t text_len;
    bool escaped;          /* backslashes are in it */
    const char *citations; /* JSON array of citations, else of search_results; or NULL */
    size_t citations_len;
};

/* False: take the general way. */
bool chunk_scan(const char *s, size_t n, struct chunk *out);
/* Appends the string without its escapes. False: it has one that is not simple. */
bool chunk_unescape(struct buf *b, const char *s, size_t n);

#endif
