/*
 * The log of what the mock provider saw and did, and when: a ring bounded in entries and
 * in bytes. A test reads it by GET /mock/log.
 */
#ifndef DAC_MOCK_JOURNAL_H
#define DAC_MOCK_JOURNAL_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

#define JOURNAL_BODY_MAX 65536
#define JOURNAL_USER_MAX 4096

/* What a request looked like. Strings are owned by the entry. */
struct journal_request {
    char *model, *user, *path, *headers, *body; /* headers: "name: value\n" lines */
    uint64_t messages, body_len, conn;
    int32_t stream_id;
    bool tls, stream, body_cut;
    const char *version; /* static */
    char body_sha256[65];
};

struct journal_entry {
    uint64_t seq, t_ns, call;
    int64_t wall_us;
    const char *event; /* static */
    uint64_t after_ns; /* since the call's request; 0 for the request itself */
    uint64_t tokens;
    int status;                  /* of an end; 0: none */
    struct journal_request *req; /* owned; only in request events */
};

struct journal {
    struct journal_entry *ring; /* owned, `size` entries */
    uint64_t size, first, next; /* seq of the oldest and of the next; seq begins at 1 */
    size_t bytes;               /* of the requests kept */
};

struct journal_filter {
    uint64_t since, call, limit; /* call 0: all */
    const char *event;           /* NULL: all */
    bool body;
};

bool journal_init(struct journal *j, uint64_t size);
void journal_free(struct journal *j);
void journal_clear(struct journal *j);
/* Takes over `req`, which may be NULL. */
void journal_add(struct journal *j, const char *event, uint64_t call, uint64_t t_ns,
                 uint64_t after_ns, uint64_t tokens, int status,
                 struct journal_request *req);
void journal_request_free(struct journal_request *req);
/* Appends {"events":[…],"next":N}. */
void journal_print(const struct journal *j, const struct journal_filter *f,
                   struct buf *out);

#endif
