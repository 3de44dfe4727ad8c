/*
 * Error answers and reason phrases, see problem.h.
 */
#include "http/problem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"

#define PROBLEM_MAX 65536

static const struct {
    int status;
    const char *reason;
} reasons[] = {
    {100, "Continue"},
    {200, "OK"},
    {201, "Created"},
    {202, "Accepted"},
    {204, "No Content"},
    {206, "Partial Content"},
    {301, "Moved Permanently"},
    {302, "Found"},
    {303, "See Other"},
    {304, "Not Modified"},
    {307, "Temporary Redirect"},
    {308, "Permanent Redirect"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {402, "Payment Required"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {406, "Not Acceptable"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {410, "Gone"},
    {411, "Length Required"},
    {412, "Precondition Failed"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {416, "Range Not Satisfiable"},
    {417, "Expectation Failed"},
    {421, "Misdirected Request"},
    {422, "Unprocessable Content"},
    {425, "Too Early"},
    {426, "Upgrade Required"},
    {428, "Precondition Required"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {499, "Client Closed Request"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {502, "Bad Gateway"},
    {503, "Service Unavailable"},
    {504, "Gateway Timeout"},
    {505, "HTTP Version Not Supported"},
    {507, "Insufficient Storage"},
    {529, "Overloaded"},
};

const char *http_reason(int status)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Unknown";
}

/* The word that OpenAI's clients look for in `error.type`. */
static const char *openai_type(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

static void put_member(struct buf *out, const char *name, const char *value)
{
    buf_printf(out, ",\"%s\":", name);
    if (value)
        json_put_string(out, value, strlen(value));
    else
        buf_puts(out, "null");
}

void http_problem_body(const struct http_problem *p, const char *detail, struct buf *out)
{
    buf_puts(out, "{\"type\":\"about:blank\"");
    put_member(out, "title", http_reason(p->status));
    buf_printf(out, ",\"status\":%d", p->status);
    put_member(out, "detail", detail);
    put_member(out, "code", p->code);
    if (p->field)
        put_member(out, "field", p->field);
    if (p->offset >= 0)
        buf_printf(out, ",\"offset\":%ld", p->offset);
    if (p->retryable)
        buf_puts(out, ",\"retryable\":true");
    if (p->retry_after_ms > 0)
        buf_printf(out, ",\"retry_after_ms\":%llu",
                   (unsigned long long)p->retry_after_ms);
    if (p->extra_json && *p->extra_json) {
        buf_putc(out, ',');
        buf_puts(out, p->extra_json);
    }
    buf_puts(out, ",\"error\":{\"message\":");
    json_put_string(out, detail, strlen(detail));
    put_member(out, "type", openai_type(p->status));
    put_member(out, "param", p->field);
    put_member(out, "code", p->code);
    buf_puts(out, "}}\n");
}

void http_respond_problem(struct http_exchange *ex, const struct http_problem *p,
                          const char *fmt, ...)
{
    char detail[1024];
    /* Further members may hold a whole answer; their maker bounds them. */
    struct buf body = BUF_INIT(PROBLEM_MAX + (p->extra_json ? strlen(p->extra_json) : 0));
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);

    http_set_ending(ex, p->code, p->status >= 500);
    http_problem_body(p, detail, &body);
    if (p->retry_after_ms > 0) {
        char seconds[32];
        snprintf(seconds, sizeof(seconds), "%llu",
                 (unsigned long long)(p->retry_after_ms / 1000 +
                                      (p->retry_after_ms % 1000 != 0)));
        http_add_header(ex, "Retry-After", seconds);
    }
    if (body.failed) /* the status alone still says the most important */
        http_respond(ex, p->status, "text/plain", "", 0);
    else
        http_respond(ex, p->status, "application/problem+json", body.data, body.len);
    buf_free(&body);
}

void http_respond_no_memory(struct http_exchange *ex)
{
    struct http_problem p = {.status = 503,
                             .code = "no_memory",
                             .offset = -1,
                             .retryable = true,
                             .retry_after_ms = 1000};
    http_respond_problem(ex, &p, "the gateway is out of memory; try again");
}
