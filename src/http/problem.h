/*
 * Error answers: RFC 9457 problem+json with an added OpenAI-style `error` object, so that
 * both kinds of clients read the same body.
 *
 *   {"type":"about:blank","title":"Bad Request","status":400,"detail":"…",
 *    "code":"bad_json","field":"content","offset":17,
 *    "error":{"message":"…","type":"invalid_request_error","param":"content",
 *             "code":"bad_json"}}
 */
#ifndef DAC_HTTP_PROBLEM_H
#define DAC_HTTP_PROBLEM_H

#include "http/http.h"

struct http_problem {
    int status;
    const char *code;        /* machine word, e.g. "unknown_model" */
    const char *field;       /* the member or header at fault, or NULL */
    long offset;             /* byte of the body, or -1 */
    uint64_t retry_after_ms; /* 0: none; sent as Retry-After, rounded up to seconds */
    bool retryable;
    const char *extra_json; /* further members: "\"available\":[…]", or NULL */
};

/* The standard reason phrase of a status code. */
const char *http_reason(int status);
/* Writes the body into `out`. */
void http_problem_body(const struct http_problem *p, const char *detail, struct buf *out);
/* Answers and ends the exchange. */
void http_respond_problem(struct http_exchange *ex, const struct http_problem *p,
                          const char *fmt, ...) DAC_PRINTF(3, 4);
/* 503 no_memory, with Retry-After: 1; ends the exchange. */
void http_respond_no_memory(struct http_exchange *ex);

#endif
