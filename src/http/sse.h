/*
 * Writes server-sent events (WHATWG HTML, section 9.2) into a buffer.
 */
#ifndef DAC_HTTP_SSE_H
#define DAC_HTTP_SSE_H

#include "base/bytes.h"

/* Begins "event: NAME\nid: ID\ndata: " (NULL leaves a line out); append one line of JSON
 * next, then sse_put_end(). */
void sse_put_begin(struct buf *b, const char *event, const char *id);
void sse_put_end(struct buf *b);
/* A whole event with `data`, one line, of n bytes. */
void sse_put_event(struct buf *b, const char *event, const char *id, const char *data,
                   size_t n);
/* ": text\n\n" */
void sse_put_comment(struct buf *b, const char *text);

#endif
