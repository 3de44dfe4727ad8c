/*
 * Incremental decoder of server-sent events (WHATWG HTML, section 9.2.6): the bytes may
 * come in any pieces. Pure: no input or output, no clock.
 *
 * An event is handed over at its blank line; one that the stream's end left without it is
 * never handed over. Lines end in LF, CR or CRLF, a byte order mark at the very start is
 * skipped, comments, `id`, `retry` and unknown fields are ignored. Data that lies whole
 * in the piece being read is not copied.
 *
 * Owner: whoever holds the struct; sse_decoder_free() releases its buffers.
 */
#ifndef DAC_UPSTREAM_SSE_DECODER_H
#define DAC_UPSTREAM_SSE_DECODER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/bytes.h"

#define SSE_NAME_MAX 64

struct sse_event {
    const char *name; /* of the `event` field; "" if it had none; cut at SSE_NAME_MAX */
    const char *data; /* lines joined by LF, not NUL-terminated; borrowed */
    size_t len;
};

/* False stops the decoder: the rest of the piece is dropped. */
typedef bool (*sse_event_fn)(void *arg, const struct sse_event *ev);

struct sse_decoder {
    struct buf line; /* begin of a line whose end has not come */
    struct buf data; /* data of the event so far, an LF behind each line */
    size_t event_max;
    char name[SSE_NAME_MAX + 1];
    unsigned bom; /* bytes of the mark seen; 3: past the start */
    bool skip_lf; /* the last byte was a CR: an LF belongs to it */
};

/* `event_max`: bytes of one event, its unfinished line included. */
void sse_decoder_init(struct sse_decoder *d, size_t event_max);
/* Begins a new stream; keeps memory up to `keep` bytes. */
void sse_decoder_reset(struct sse_decoder *d, size_t keep);
void sse_decoder_free(struct sse_decoder *d);

/* Decodes a piece and calls `fn` for each event that ends in it. DAC_OK also when `fn`
 * stopped. DAC_E_TOO_LARGE: an event passes event_max; DAC_E_NOMEM. After an error the
 * stream is beyond repair. */
enum dac_err sse_decoder_feed(struct sse_decoder *d, const char *p, size_t n,
                              sse_event_fn fn, void *arg) DAC_CHECK;
/* Whether an event or a line has begun and not ended. */
bool sse_decoder_pending(const struct sse_decoder *d);

#endif
