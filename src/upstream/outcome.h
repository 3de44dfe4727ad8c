/*
 * How calls end, in words: from an HTTP status, from an error of libcurl, or as a reader
 * found out. Pure functions.
 *
 * Process: worker; also tests.
 */
#ifndef DAC_UPSTREAM_OUTCOME_H
#define DAC_UPSTREAM_OUTCOME_H

#include <stdint.h>

#include "upstream/upstream.h"

/* Fills *end; `retryable` as if nothing had come before. */
void outcome_set(struct upstream_end *end, enum upstream_outcome outcome,
                 const char *code, const char *message);
/* Appends ": QUOTE" to the message: control characters and ill-formed UTF-8 cleaned, cut
 * between characters, and what looks like `key` (NULL: none) struck out. */
void outcome_quote(struct upstream_end *end, const char *quote, const char *key);

/* An answer other than a 2xx; `body` (up to what was read of it) may hold a message. */
void outcome_from_status(struct upstream_end *end, int status, const char *body, size_t n,
                         const char *key);
/* The provider's words in an answer or event that is an error object; NULL: it is none.
 * Borrowed from `o`. */
const char *outcome_error_text(struct json_object *o);
/* The same for a body of JSON: copied into `out`, false: it is no error object. */
bool outcome_error_in(const char *body, size_t n, char *out, size_t size);

/* An error of libcurl (a CURLcode) before there was the head of an answer. */
void outcome_from_curl(struct upstream_end *end, int curl_code);

/* A Retry-After value (RFC 9110, 10.2.3: seconds or a date) in ms, at most a day; 0 if it
 * is neither or lies in the past. `wall_us` as clock_wall_us(). */
uint64_t outcome_retry_after(const char *s, size_t n, int64_t wall_us);

#endif
