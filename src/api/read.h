/*
 * A handler that waits for the store: keeps the exchange and the query together, so that
 * a client that leaves takes its query along.
 */
#ifndef DAC_API_READ_H
#define DAC_API_READ_H

#include "api/api.h"
#include "flight/ask.h"

struct read {
    struct api *api;
    struct http_exchange *ex;
    struct store_query *query;
    uint64_t started_ns; /* of the query */
    struct id id;        /* of what is read */
    size_t limit;
    struct ask *ask; /* owned; of a question that waits for its thread, or NULL */
    bool cancel;
    struct resume_from from;
};

/* Keeps the exchange until read_done(). Without memory it answers 503 and returns NULL.
 */
struct read *read_new(struct api *api, struct http_exchange *ex);
/* After starting the query: answers 503 if there is none. False: rd is gone. */
bool read_started(struct read *rd, struct store_query *q);
/* In the query's callback: frees rd and returns the exchange, to be answered now. */
struct http_exchange *read_done(struct read *rd);
/* Answers for a failed query: 404 `what`_not_found, or 503. */
void read_refuse(struct http_exchange *ex, enum dac_err e, const char *what);

#endif
