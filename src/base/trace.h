/*
 * The trace that a request belongs to: header `traceparent` of the W3C recommendation
 * Trace Context, read strictly and written anew with a span id of our own.
 *
 * Of what a client sends the trace id and the sampled flag are kept. Its parent id is
 * checked only: the spans between it and ours are not told to anybody. Header
 * `tracestate`, which vendors of tracing pass among each other, is not passed on: it is
 * up to 512 bytes of foreign text that no provider needs, and would have to be shared to
 * outlive a worker.
 *
 * Any process, any thread.
 */
#ifndef DAC_BASE_TRACE_H
#define DAC_BASE_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#define TRACE_SAMPLED      1u /* flag: the caller may have recorded it */
#define TRACE_ID_TEXT_SIZE 33
#define TRACE_PARENT_LEN   55
#define TRACE_PARENT_SIZE  (TRACE_PARENT_LEN + 1)

struct trace {
    uint8_t id[16]; /* all zero: none */
    uint8_t flags;  /* TRACE_SAMPLED or 0: the recommendation has all others be 0 */
};

/* Reads a header's value (NULL: there is none; several headers, joined by commas, are
 * malformed). False if it is to be ignored: *out is no trace then. */
bool trace_parse(const char *value, struct trace *out);
bool trace_given(const struct trace *t);
/* A new trace, not sampled. */
struct trace trace_new(void);
/* The trace id as 32 hex digits, "" where there is none. */
void trace_format_id(const struct trace *t, char out[TRACE_ID_TEXT_SIZE]);
/* A header's value of version 00 for one call, with a new span id. */
void trace_format_parent(const struct trace *t, char out[TRACE_PARENT_SIZE]);

#endif
