/*
 * Calls to the LLM provider: libcurl's multi interface on the worker's libevent loop, one
 * shared connection pool per worker (HTTP/2 where the provider speaks it), and an adapter
 * per dialect that writes the request and reads the stream. Knows nothing of flights.
 *
 * A call is always streamed upstream. Its life:
 *
 *   upstream_start() -> on_accepted? -> (on_text | on_reasoning | on_tool | on_citations
 * | on_usage)* -> on_end exactly once upstream_cancel(): nothing is called any more, and
 * the provider sees the call end (a stream reset in HTTP/2, a close in HTTP/1.1) at once.
 *
 * Callbacks come from the event loop, never from inside upstream_start() or
 * upstream_cancel(). Calling upstream_cancel(), upstream_pause() or upstream_start()
 * inside a callback is allowed: multi functions are never called inside one of curl's own
 * callbacks, they are put off. An ending is honest: `complete` is only what said
 * finish_reason and then ended as it should ([DONE], or a stream that HTTP ended
 * cleanly); everything else says what broke. Nothing of prompts, answers or keys is
 * logged.
 *
 * Process: worker, event loop thread only.
 */
#ifndef DAC_UPSTREAM_UPSTREAM_H
#define DAC_UPSTREAM_UPSTREAM_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"

struct event_base;
struct upstream;
struct upstream_call;

struct upstream_provider {
    const char *name;
    const char *dialect;  /* "openai" */
    const char *base_url; /* e.g. https://api.example.com/v1, no slash at its end */
    const char *api_key;  /* NULL: none is sent */
    const char *ca_file;  /* PEM file of trusted roots; NULL: the system's */
    bool http2;           /* offer h2 by ALPN over TLS */
    uint64_t connect_timeout_ns;
    uint64_t first_token_timeout_ns; /* from start to the first content */
    uint64_t stall_timeout_ns; /* between two pieces of content (comments don't count) */
    uint64_t answer_max_bytes; /* of text; above: the call ends answer_too_large */
};

struct upstream_request {
    const char *model;
    struct json_object
        *messages;              /* borrowed during upstream_start(): array of messages */
    struct json_object *params; /* borrowed: further members of the body; NULL: none */
    const char *traceparent;    /* value of that header, copied; NULL: none is sent */
    struct log_about
        about; /* for the log; its strings are borrowed for the call's life */
};

enum upstream_outcome {
    UPSTREAM_COMPLETE, /* finish_reason seen and the stream ended as it should */
    UPSTREAM_REFUSED,  /* 400, 404, 413, 422 …: the request is at fault; same status */
    UPSTREAM_AUTH,     /* 401, 403: our key is at fault */
    UPSTREAM_RATE_LIMITED, /* 429 */
    UPSTREAM_OVERLOADED,   /* 503, 529 */
    UPSTREAM_BAD,     /* other 5xx, refused, TLS, redirect, wrong type, error in a 200 */
    UPSTREAM_TIMEOUT, /* silence before the first content */
    UPSTREAM_BROKEN,  /* cut, stalled, junk or error after the first content */
    UPSTREAM_TOO_LARGE, /* answer_max_bytes */
};

struct upstream_end {
    enum upstream_outcome outcome;
    int http_status;         /* the provider's, 0 if there was none */
    uint64_t retry_after_ms; /* from Retry-After (seconds or date), 0 if none */
    bool retryable;          /* before the first content: may be asked again */
    uint64_t heard_ns;       /* when the last came in, or what ended it happened */
    char finish_reason[32];  /* "" unless complete */
    char code[40];     /* machine word: connect_failed, tls_failed, first_token_timeout,
                        * stall_timeout, cut_off, malformed_stream, provider_error,
                        * provider_auth, rate_limited, overloaded, bad_content_type,
                        * redirect, empty_answer, no_finish_reason, answer_too_large … */
    char message[256]; /* for people; quotes the provider's own message where it gave one
                        * (cleaned, cut), never our key */
};

struct upstream_usage {
    int64_t prompt_tokens; /* -1: not said */
    int64_t completion_tokens;
    int64_t total_tokens;
};

/* All text is well-formed UTF-8 of whole characters, made storable. Pointers are
 * borrowed. */
struct upstream_ops {
    void (*on_accepted)(void *arg); /* 200 and an event stream: the provider said yes */
    void (*on_text)(void *arg, const char *s, size_t n);
    void (*on_reasoning)(void *arg, const char *s, size_t n);
    void (*on_tool)(void *arg, const char *json, size_t n); /* a tool_calls delta array */
    void (*on_citations)(void *arg, const char *json,
                         size_t n); /* array; only when changed */
    void (*on_usage)(void *arg, const struct upstream_usage *u);
    void (*on_end)(void *arg, const struct upstream_end *end);
};

enum dac_err upstream_new(struct event_base *base, struct upstream **out) DAC_CHECK;
/* Cancels what runs. */
void upstream_free(struct upstream *u);

/* Starts a call. `p` is borrowed for the call's life, `ops` is static. DAC_E_NOMEM or
 * DAC_E_INVALID (then nothing is called). */
enum dac_err upstream_start(struct upstream *u, const struct upstream_provider *p,
                            const struct upstream_request *req,
                            const struct upstream_ops *ops, void *arg,
                            struct upstream_call **out) DAC_CHECK;
/* Ends the call now; the pointer is dead. Not after on_end(), nor inside it. */
void upstream_cancel(struct upstream_call *call);
/* Stops reading (backpressure on the provider), and goes on. Idempotent. */
void upstream_pause(struct upstream_call *call);
void upstream_resume(struct upstream_call *call);
size_t upstream_active(const struct upstream *u);
/* To be called now and then by its owner, not from a callback: makes up for timers that
 * found no memory. */
void upstream_tick(struct upstream *u, uint64_t now_ns);

#endif
