/*
 * Requests told apart: the id of each, and the line in the log when it is over.
 *
 * A client's X-Request-Id is taken over if it is of a few harmless characters; else one
 * is made: 64 random bits of the server, and 64 that are its own among the server's, the
 * number of the request under a key. So an id costs no system call and tells nobody how
 * many requests there were.
 *
 * A line names the route, not the path, and nothing of what the client sent but the id:
 * paths, queries and headers may hold what people asked, or keys. Nothing is gathered for
 * a line that is not written.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/log.h"
#include "http/internal.h"

/* --- ids ---------------------------------------------------------------------------- */

void report_init(struct http_server *s)
{
    random_bytes(&s->id_head, sizeof(s->id_head));
    random_bytes(&s->id_key, sizeof(s->id_key));
}

/* Never gives two numbers the same: each step can be undone. (The finalizer of
 * MurmurHash3, by Austin Appleby, in the public domain.) */
static uint64_t scatter(uint64_t n)
{
    n = (n ^ (n >> 33)) * UINT64_C(0xff51afd7ed558ccd);
    n = (n ^ (n >> 33)) * UINT64_C(0xc4ceb9fe1a85ec53);
    return n ^ (n >> 33);
}

static bool is_id(const char *s)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-";
    size_t n = strspn(s, allowed);

    return n > 0 && n <= HTTP_REQUEST_ID_MAX && s[n] == '\0';
}

/* Without memory for the client's own it gets one of ours. */
void report_identify(struct http_exchange *ex)
{
    struct http_server *s = ex->conn->server;
    const char *given = h1_header(&ex->in->h1, "X-Request-Id");

    if (ex->has_client_id || ex->id.serial)
        return;
    if (given && is_id(given)) {
        ex->id.client = strdup(given);
        ex->has_client_id = ex->id.client != NULL;
    }
    if (!ex->has_client_id)
        ex->id.serial = ++s->id_next;
}

const char *http_request_id(const struct http_exchange *ex,
                            char out[HTTP_REQUEST_ID_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    const struct http_server *s = ex->conn->server;
    uint64_t word[2] = {s->id_head, 0};

    DAC_ASSERT(ex->magic == EXCHANGE_MAGIC);
    if (ex->has_client_id) {
        snprintf(out, HTTP_REQUEST_ID_SIZE, "%s", ex->id.client);
        return out;
    }
    word[1] = scatter(ex->id.serial ^ s->id_key);
    for (size_t i = 0; i < 32; i++)
        out[i] = digits[word[i / 16] >> (60 - 4 * (i % 16)) & 15];
    out[32] = '\0';
    return out;
}

/* --- the line ----------------------------------------------------------------------- */

static const char *method_name(enum http_method method)
{
    switch (method) {
    case HTTP_GET:
        return "GET";
    case HTTP_HEAD:
        return "HEAD";
    case HTTP_POST:
        return "POST";
    case HTTP_PUT:
        return "PUT";
    case HTTP_PATCH:
        return "PATCH";
    case HTTP_DELETE:
        return "DELETE";
    case HTTP_OPTIONS:
        return "OPTIONS";
    }
    return "-"; /* its first line could not be read */
}

static bool is_error(const struct http_exchange *ex, enum exchange_end how)
{
    return ex->status >= 500 || ex->failed || how == EXCHANGE_CUT ||
           how == EXCHANGE_STALLED;
}

/* A word, or an error's code. */
static const char *end_name(const struct http_exchange *ex, enum exchange_end how)
{
    switch (how) {
    case EXCHANGE_ANSWERED:
        break;
    case EXCHANGE_LEFT:
        return "left";
    case EXCHANGE_STALLED:
        return "stalled";
    case EXCHANGE_CUT:
        return "cut";
    }
    return ex->ending ? ex->ending : "complete";
}

/* What of the answer is with the kernel; the rest of one that was ended well follows. */
static uint64_t bytes_sent(const struct http_exchange *ex, enum exchange_end how)
{
    uint64_t rest = how == EXCHANGE_ANSWERED ? 0 : conn_unsent(ex->conn);

    return ex->bytes > rest ? ex->bytes - rest : 0;
}

static void write_line(const struct http_exchange *ex, enum exchange_end how,
                       const struct http_report *more)
{
    const struct http_server *s = ex->conn->server;
    uint64_t now = clock_now_ns();
    char id[HTTP_REQUEST_ID_SIZE], text[512], status[16], bytes[24], ms[32], ttft[32];
    char trace[TRACE_ID_TEXT_SIZE];
    const char *route = ex->route ? s->opt.routes[ex->route - 1].pattern : "-";
    const struct log_field fields[] = {
        {"method", method_name(ex->method), false},
        {"route", route, false},
        {"status", ex->status ? status : NULL, true},
        {"bytes", bytes, true},
        {"duration_ms", ms, true},
        {"ttft_ms", more->ttft_ms >= 0 ? ttft : NULL, true},
        {"role", more->role, false},
        {"end", end_name(ex, how), false},
    };
    const struct log_about about = {.request = http_request_id(ex, id),
                                    .turn = more->turn,
                                    .org = more->org,
                                    .trace = trace,
                                    .fields = fields,
                                    .field_count = DAC_ARRAY_LEN(fields)};

    trace_format_id(&ex->trace, trace);
    snprintf(status, sizeof(status), "%d", ex->status);
    snprintf(bytes, sizeof(bytes), "%" PRIu64, bytes_sent(ex, how));
    snprintf(ms, sizeof(ms), "%.3f",
             ex->arrived_ns ? (double)(now - ex->arrived_ns) / (double)NS_PER_MS : 0.0);
    snprintf(ttft, sizeof(ttft), "%.3f", more->ttft_ms);
    snprintf(text, sizeof(text), "%s %s %s %s%s%s, %s bytes in %s ms%s%s%s",
             method_name(ex->method), route, ex->status ? status : "-", end_name(ex, how),
             more->role ? ", " : "", more->role ? more->role : "", bytes, ms,
             more->ttft_ms >= 0 ? ", first content after " : "",
             more->ttft_ms >= 0 ? ttft : "", more->ttft_ms >= 0 ? " ms" : "");
    /* All means all: such a line is never counted instead of written. */
    if (s->opt.log_requests == HTTP_LOG_ALL && is_error(ex, how))
        log_warn_about(&about, 0, "%s%s", "request: ", text);
    else if (s->opt.log_requests == HTTP_LOG_ALL)
        log_info_about(&about, 0, "%s%s", "request: ", text);
    else
        log_warn_about(&about, 0, "request: %s", text);
}

void report_over(struct http_exchange *ex, enum exchange_end how)
{
    const struct http_server_options *opt = &ex->conn->server->opt;
    struct http_report more = {.ttft_ms = -1};

    if (opt->log_requests == HTTP_LOG_OFF ||
        (opt->log_requests == HTTP_LOG_ERRORS && !is_error(ex, how)))
        return;
    if (ex->status == 0 && ex->arrived_ns == 0)
        return; /* it was never a whole request */
    if (opt->describe)
        opt->describe(ex, opt->ctx, &more);
    if (ex->cb && ex->cb->describe)
        ex->cb->describe(ex, ex->user, &more);
    write_line(ex, how, &more);
}
