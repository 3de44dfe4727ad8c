/*
 * What a dialect of provider API is: how its request is written and its events are read.
 *
 * Process: worker, event loop thread only.
 */
#ifndef DAC_UPSTREAM_DIALECT_H
#define DAC_UPSTREAM_DIALECT_H

#include "base/bytes.h"
#include "upstream/reader.h"

struct dialect {
    const char *name; /* as in the configuration */
    const char *path; /* behind the base URL */
    /* Appends the request's body; b->failed if there was no room. */
    void (*put_request)(struct buf *b, const struct upstream_request *req);
    /* Reads one event. */
    void (*read_event)(struct reader *r, const struct sse_event *ev);
};

extern const struct dialect dialect_openai;

/* NULL: there is none of that name. */
const struct dialect *dialect_find(const char *name);

#endif
