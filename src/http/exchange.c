/*
 * An exchange: its routing, what handlers may ask about the request, and its end. The
 * answer is in response.c.
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "http/internal.h"
#include "http/problem.h"
#include "http/target.h"

struct http_exchange *exchange_new(struct conn *c)
{
    const struct http_limits *limits = &c->server->opt.limits;
    struct http_exchange *ex = calloc(1, sizeof(*ex));
    struct inbound *in = ex ? malloc(sizeof(*in)) : NULL;

    if (!in) {
        free(ex);
        return NULL;
    }
    memset(in, 0, offsetof(struct inbound, h1));
    h1_request_init(&in->h1, limits->header_max, limits->body_max);
    ex->magic = EXCHANGE_MAGIC;
    ex->minor = 1;
    ex->conn = c;
    ex->in = in;
    ex->headers = BUF_INIT(HTTP_HEADERS_OUT_MAX);
    c->ex = ex;
    return ex;
}

void exchange_forget(struct http_exchange *ex)
{
    if (!ex->in)
        return;
    h1_request_free(&ex->in->h1);
    free(ex->in->strings);
    free(ex->in);
    ex->in = NULL;
}

void exchange_over(struct http_exchange *ex, enum exchange_end how)
{
    struct http_server *s = ex->conn->server;

    DAC_ASSERT(ex->magic == EXCHANGE_MAGIC && !ex->over);
    report_over(ex, how);
    ex->over = true;
    ex->conn->ex = NULL;
    if (ex->streaming)
        s->stats.streams--;
    SLIST_INSERT_HEAD(&s->parked_exchanges, ex, parked);
    server_turn(s);
}

void exchange_free(struct http_exchange *ex)
{
    exchange_forget(ex);
    buf_free(&ex->headers);
    if (ex->has_client_id)
        free(ex->id.client);
    ex->magic = 0;
    free(ex);
}

/* --- routing -------------------------------------------------------------------------
 */

/* Decodes path, segments and query into one allocation. */
static enum dac_err decode_target(struct inbound *in, const char **raw, char **segments)
{
    struct h1_request *r = &in->h1;
    const char *path = r->head.data + r->path;
    const char *query = r->has_query ? r->head.data + r->query : "";
    size_t path_len = strlen(path);

    char *to = malloc(2 * (path_len + 1) + 2 * strlen(query) + 2);
    if (!to)
        return DAC_E_NOMEM;
    in->strings = to;
    in->path = to;
    target_decode(to, path, path_len, false);
    *segments = to + path_len + 1;
    char *pairs = *segments + path_len + 1;
    in->query = pairs;
    in->query_len = target_split_query(pairs, query);
    *raw = path;
    return DAC_OK;
}

/* application/json, with or without parameters, or no type at all. */
static bool is_json(const char *type)
{
    if (!type)
        return true;
    size_t n = strcspn(type, "; \t");
    return bytes_ieq(type, n, "application/json");
}

/* Not compressed: RFC 9110, section 8.4, keeps "identity" for that. */
static bool is_plain(const char *encoding)
{
    return !encoding || bytes_ieq(encoding, strlen(encoding), "identity");
}

static void reject(struct http_exchange *ex, bool must_close, int status,
                   const char *code, const char *field, const char *detail)
{
    ex->must_close = must_close;
    ex->in->reject = (struct rejection){status, code, field, detail};
}

/* What a head can be refused for before its body is read. */
static void admit(struct http_exchange *ex)
{
    struct h1_request *r = &ex->in->h1;
    unsigned sends = HTTP_POST | HTTP_PUT | HTTP_PATCH;
    const struct http_route *route = ex->in->match.route;

    if (r->content_length > ex->conn->server->opt.limits.body_max)
        reject(ex, true, 413, "body_too_large", "Content-Length",
               "the body is larger than this server takes");
    else if (r->expect_unknown && r->minor >= 1)
        reject(ex, true, 417, "unknown_expectation", "Expect",
               "the only expectation known here is 100-continue");
    else if (!ex->in->match.allowed)
        reject(ex, false, 404, "not_found", NULL, "no such resource");
    else if (!route && ex->method == HTTP_OPTIONS)
        reject(ex, false, 204, NULL, NULL, NULL);
    else if (!route)
        reject(ex, false, 405, "method_not_allowed", NULL,
               "the resource does not have this method");
    else if (route->json_body && (ex->method & sends) && !r->has_length && !r->chunked)
        reject(ex, true, 411, "length_required", "Content-Length",
               "a body needs Content-Length or chunked coding");
    else if (route->json_body && (ex->method & sends) &&
             !is_json(h1_header(r, "Content-Type")))
        reject(ex, false, 415, "unsupported_type", "Content-Type",
               "the body must be application/json");
    else if (route->json_body && (ex->method & sends) &&
             !is_plain(h1_header(r, "Content-Encoding")))
        reject(ex, false, 415, "unsupported_encoding", "Content-Encoding",
               "the body must not be compressed");
}

enum dac_err exchange_route(struct http_exchange *ex)
{
    const struct http_server_options *opt = &ex->conn->server->opt;
    struct inbound *in = ex->in;
    const char *raw;
    char *segments;

    enum dac_err e = decode_target(in, &raw, &segments);
    if (e != DAC_OK)
        return e;
    if (strcmp(raw, "*") == 0)
        in->match.allowed = HTTP_GET | HTTP_HEAD | HTTP_POST | HTTP_PUT | HTTP_PATCH |
                            HTTP_DELETE | HTTP_OPTIONS;
    else
        router_find(opt->routes, opt->route_count, ex->method, raw, segments, &in->match);
    if (in->match.route)
        ex->route = (uint16_t)(in->match.route - opt->routes + 1);
    admit(ex);
    return DAC_OK;
}

void exchange_reject(struct http_exchange *ex)
{
    struct http_problem p = {
        .status = ex->in->reject.status,
        .code = ex->in->reject.code,
        .field = ex->in->reject.field,
        .offset = -1,
    };

    if (p.status == 405 || p.status == 204) {
        struct buf allow = BUF_INIT(128);
        router_put_allow(&allow, ex->in->match.allowed);
        const char *text = buf_cstr(&allow);
        if (text)
            http_add_header(ex, "Allow", text);
        buf_free(&allow);
    }
    if (p.status == 204)
        http_respond(ex, 204, NULL, NULL, 0);
    else
        http_respond_problem(ex, &p, "%s", ex->in->reject.detail);
}

void exchange_refuse(struct http_exchange *ex, const struct h1_fault *fault)
{
    struct http_problem p = {
        .status = fault->status,
        .code = fault->code,
        .field = fault->field[0] ? fault->field : NULL,
        .offset = -1,
    };

    ex->method = ex->in->h1.method;
    http_respond_problem(ex, &p, "%s", fault->detail);
}

/* --- what handlers ask ----------------------------------------------------------------
 */

static const struct http_exchange *checked(const struct http_exchange *ex)
{
    DAC_ASSERT(ex && ex->magic == EXCHANGE_MAGIC);
    return ex;
}

enum http_method http_method(const struct http_exchange *ex)
{
    return checked(ex)->method;
}

const char *http_path(const struct http_exchange *ex)
{
    return checked(ex)->in ? ex->in->path : NULL;
}

const char *http_path_arg(const struct http_exchange *ex, size_t i)
{
    const struct inbound *in = checked(ex)->in;

    return in && i < in->match.arg_count ? in->match.args[i] : NULL;
}

const char *http_query(const struct http_exchange *ex, const char *name)
{
    const struct inbound *in = checked(ex)->in;

    if (!in)
        return NULL;
    const char *end = in->query + in->query_len;
    for (const char *p = in->query; p < end;) {
        const char *value = p + strlen(p) + 1;
        if (strcmp(p, name) == 0)
            return value;
        p = value + strlen(value) + 1;
    }
    return NULL;
}

const char *http_header(const struct http_exchange *ex, const char *name)
{
    return checked(ex)->in ? h1_header(&ex->in->h1, name) : NULL;
}

size_t http_header_count(const struct http_exchange *ex, const char *name)
{
    return checked(ex)->in ? h1_header_count(&ex->in->h1, name) : 0;
}

bool http_header_has_token(const struct http_exchange *ex, const char *name,
                           const char *token)
{
    const char *v = http_header(ex, name);

    while (v && *v) {
        size_t n = strcspn(v, ",");
        size_t skip = strspn(v, " \t");
        size_t len = 0;
        if (skip < n) {
            len = strcspn(v + skip, ";,");
            while (len && (v[skip + len - 1] == ' ' || v[skip + len - 1] == '\t'))
                len--;
        }
        if (len && bytes_ieq(v + skip, len, token))
            return true;
        v += n + (v[n] == ',');
    }
    return false;
}

const char *http_body(const struct http_exchange *ex, size_t *len)
{
    const struct h1_request *r = checked(ex)->in ? &ex->in->h1 : NULL;

    *len = r ? r->body.len : 0;
    return *len ? r->body.data : "";
}

uint64_t http_arrived_ns(const struct http_exchange *ex)
{
    return checked(ex)->arrived_ns;
}

const struct trace *http_trace(struct http_exchange *ex)
{
    if (!trace_given(&checked(ex)->trace))
        ex->trace = trace_new();
    return &ex->trace;
}

void *http_ctx(const struct http_exchange *ex)
{
    return checked(ex)->conn->server->opt.ctx;
}

void http_set_callbacks(struct http_exchange *ex, const struct http_callbacks *cb,
                        void *user)
{
    DAC_ASSERT(!checked(ex)->over);
    ex->cb = cb;
    ex->user = user;
}

void *http_user(const struct http_exchange *ex)
{
    return checked(ex)->user;
}

void http_forget_request(struct http_exchange *ex)
{
    DAC_ASSERT(!checked(ex)->over);
    exchange_forget(ex);
}
