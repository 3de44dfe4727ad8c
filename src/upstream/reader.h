/*
 * What is known of one answer while it streams in, and the way its pieces take to the
 * caller: made storable, counted against the limit, and nothing any more once the call
 * was cancelled. The dialects read events into it; the call asks it how the answer ended.
 *
 * Process: worker, event loop thread only.
 */
#ifndef DAC_UPSTREAM_READER_H
#define DAC_UPSTREAM_READER_H

#include <json-c/json.h>
#include <stdbool.h>

#include "base/bytes.h"
#include "upstream/sse_decoder.h"
#include "upstream/upstream.h"

struct reader {
    const struct upstream_ops *ops;
    void *arg;
    bool muted;      /* cancelled: ops are not called any more */
    bool content;    /* text, reasoning or a tool call came */
    bool finished;   /* a finish_reason came */
    bool done;       /* the dialect's end mark came */
    bool failed;     /* beyond repair: `end` says why; wins over all above */
    uint64_t pieces; /* of content */
    uint64_t events; /* of any kind */
    uint64_t bytes;  /* of content */
    uint64_t max;    /* bytes allowed; 0: any */
    const char *key; /* never quoted; NULL: none. Borrowed */
    char finish_reason[32];
    struct json_object *citations; /* last ones given to the caller; a reference */
    struct buf sources;            /* the same as they stood in the chunk */
    struct buf *scratch;           /* borrowed: shared by all calls of a worker */
    struct buf *unescaped;         /* borrowed: the same */
    struct upstream_end end;       /* set with `failed` */
};

/* Forgets the stream; drops what it owns, keeps what it borrows. */
void reader_reset(struct reader *r);
/* Whether events are still wanted. */
bool reader_open(const struct reader *r);

/* Pieces of content, as they came from JSON: any bytes. Empty ones are ignored. */
void reader_text(struct reader *r, const char *s, size_t n);
void reader_reasoning(struct reader *r, const char *s, size_t n);
void reader_tool(struct reader *r, struct json_object *calls);
/* An array; given on if it differs from the last one. */
void reader_citations(struct reader *r, struct json_object *list);
/* Whether these bytes are the array that was kept last, and keeping one: what comes in
 * each chunk again need not be read again. */
bool reader_has_sources(const struct reader *r, const char *s, size_t n);
void reader_keep_sources(struct reader *r, const char *s, size_t n);
void reader_usage(struct reader *r, const struct upstream_usage *u);
void reader_finish(struct reader *r, const char *reason);
/* The provider, or its stream, is at fault. `quote`: the provider's own words or NULL. */
void reader_fail(struct reader *r, const char *code, const char *message,
                 const char *quote);

/* One event's data as JSON: a new reference, or NULL and the reader has failed. */
struct json_object *reader_parse(struct reader *r, const char *s, size_t n);

/* How an answer ended whose stream is over: at its end mark, or because the transfer
 * ended as HTTP says (`cut` false) or otherwise. */
void reader_outcome(const struct reader *r, bool cut, struct upstream_end *end);

#endif
