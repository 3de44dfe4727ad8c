/*
 * The control API under /mock/: counters, log, barriers, scripts, limits, and long polls
 * that end when a counter has the wanted value. Its requests are not counted as the
 * provider's.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "tools/mock/call.h"
#include "tools/mock/render.h"

#define WAIT_CONDITIONS  8
#define WAIT_DEFAULT_NS  (5 * NS_PER_S)
#define SCRIPT_TIMES_MAX UINT64_C(1000000000)

static const struct header type_json[] = {{"content-type", "application/json"}};

/* The counters by name. Of a level, a plain number means "exactly", else "at least". */
static const struct {
    const char *name;
    size_t offset;
    bool level;
} counters[] = {
#define COUNTER(field, level)                                                            \
    {                                                                                    \
#field, offsetof(struct stats, field), level                                     \
    }
    COUNTER(requests, false),
    COUNTER(calls, false),
    COUNTER(active, true),
    COUNTER(waiting, true),
    COUNTER(stalled, true),
    COUNTER(completed, false),
    COUNTER(failed, false),
    COUNTER(cut, false),
    COUNTER(client_gone, false),
    COUNTER(closed, false),
    COUNTER(reset, false),
    COUNTER(rate_limited, false),
    COUNTER(bad_requests, false),
    COUNTER(unauthorized, false),
    COUNTER(max_concurrent, false),
    COUNTER(tokens_sent, false),
    COUNTER(bytes_sent, false),
    COUNTER(connections, true),
    COUNTER(connections_total, false),
    COUNTER(tls_connections, false),
    COUNTER(h2_connections, false),
    COUNTER(h2_streams, false),
    COUNTER(open, true),
#undef COUNTER
};

static uint64_t counter(const struct stats *s, size_t i)
{
    uint64_t v;

    memcpy(&v, (const char *)s + counters[i].offset, sizeof(v));
    return v;
}

static void respond(struct exchange *x, int status, const struct buf *b)
{
    exchange_respond(x, status, type_json, 1, b->len ? b->data : "", b->len);
}

static void respond_ok(struct exchange *x)
{
    static const char body[] = "{\"ok\":true}\n";

    exchange_respond(x, 200, type_json, 1, body, sizeof(body) - 1);
}

static void bad(struct exchange *x, const char *message)
{
    mock_error(x, 400, "invalid_request_error", "mock_control", message);
}

static void print_stats(const struct mock *m, bool timed_out, struct buf *b)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(counters); i++)
        buf_printf(b, "%s\"%s\":%" PRIu64, i ? "," : "{", counters[i].name,
                   counter(&m->stats, i));
    buf_printf(b, ",\"log_seq\":%" PRIu64 ",\"t_ns\":%" PRIu64 ",\"timeout\":%s}\n",
               m->journal.next - 1, clock_now_ns(), timed_out ? "true" : "false");
}

static void get_stats(struct exchange *x)
{
    struct buf b = BUF_INIT(65536);

    print_stats(x->conn->mock, false, &b);
    respond(x, 200, &b);
    buf_free(&b);
}

static bool query_number(struct exchange *x, const char *name, uint64_t *out)
{
    char text[32];

    if (!exchange_query(x, name, text, sizeof(text)))
        return true;
    return bytes_parse_u64(text, strlen(text), UINT64_MAX / 2, out);
}

static void get_log(struct exchange *x)
{
    struct journal_filter f = {.limit = UINT64_MAX / 2};
    char event[32], body[8];
    struct buf b = BUF_INIT(WIRE_OUT_MAX / 2);

    if (!query_number(x, "since", &f.since) || !query_number(x, "call", &f.call) ||
        !query_number(x, "limit", &f.limit)) {
        bad(x, "since, call and limit are numbers");
        return;
    }
    if (exchange_query(x, "event", event, sizeof(event)))
        f.event = event;
    f.body = exchange_query(x, "body", body, sizeof(body)) && strcmp(body, "0") != 0;
    journal_print(&x->conn->mock->journal, &f, &b);
    if (b.failed)
        mock_error(x, 500, "server_error", "mock_log", "the log is too large: use limit");
    else
        respond(x, 200, &b);
    buf_free(&b);
}

/* --- scripts
 * ---------------------------------------------------------------------------- */

static void script_free(struct script *q)
{
    spec_free(&q->spec);
    free(q->match);
    free(q);
}

static void clear_scripts(struct mock *m)
{
    struct script *q;

    while ((q = TAILQ_FIRST(&m->scripts))) {
        TAILQ_REMOVE(&m->scripts, q, link);
        script_free(q);
    }
}

static enum dac_err script_fill(struct script *q, struct json_object *o,
                                char err[SPEC_ERR_SIZE])
{
    static const char *const own[] = {"match", "times", NULL};
    struct json_object *v;
    int64_t times;

    if (json_object_is_type(o, json_type_string))
        return spec_parse_words(&q->spec, json_object_get_string(o),
                                (size_t)json_object_get_string_len(o), err);
    if (json_object_object_get_ex(o, "match", &v)) {
        q->match = strdup(json_object_get_string(v));
        if (!q->match)
            return DAC_E_NOMEM;
    }
    if (json_object_object_get_ex(o, "times", &v)) {
        times = json_object_get_int64(v);
        if (times < 0 || !json_object_is_type(v, json_type_int)) {
            snprintf(err, SPEC_ERR_SIZE, "times is a number of calls, 0 for all");
            return DAC_E_INVALID;
        }
        q->left = times ? (uint64_t)times : SPEC_NEVER;
    }
    return spec_parse_json(&q->spec, o, own, err);
}

static enum dac_err script_add(struct script_list *to, struct json_object *o,
                               char err[SPEC_ERR_SIZE])
{
    struct script *q = calloc(1, sizeof(*q));
    enum dac_err rc;

    if (!q)
        return DAC_E_NOMEM;
    spec_init(&q->spec);
    q->left = 1;
    rc = script_fill(q, o, err);
    if (rc == DAC_OK)
        TAILQ_INSERT_TAIL(to, q, link);
    else
        script_free(q);
    return rc;
}

/* A body is JSON if it looks like it, else words. */
static enum dac_err parse_body(struct exchange *x, struct json_object **out,
                               char err[SPEC_ERR_SIZE])
{
    const char *body = x->body.len ? x->body.data : "";
    size_t blank = strspn(body, " \t\r\n");
    struct json_error wrong;
    enum dac_err rc;

    if (!strchr("{[\"", body[blank]) || body[blank] == '\0') {
        *out = json_object_new_string_len(body, (int)x->body.len);
        return *out ? DAC_OK : DAC_E_NOMEM;
    }
    rc = json_parse_strict(body, x->body.len, out, &wrong);
    if (rc != DAC_OK)
        snprintf(err, SPEC_ERR_SIZE, "bad JSON at byte %zu: %s", wrong.offset,
                 wrong.message);
    return rc;
}

static void post_script(struct exchange *x)
{
    struct mock *m = x->conn->mock;
    struct script_list fresh = TAILQ_HEAD_INITIALIZER(fresh);
    struct json_object *o = NULL;
    char err[SPEC_ERR_SIZE] = "out of memory", clear[8];
    struct script *q;
    enum dac_err rc = parse_body(x, &o, err);

    if (rc == DAC_OK && json_object_is_type(o, json_type_array)) {
        for (size_t i = 0; rc == DAC_OK && i < json_object_array_length(o); i++)
            rc = script_add(&fresh, json_object_array_get_idx(o, i), err);
    } else if (rc == DAC_OK) {
        rc = script_add(&fresh, o, err);
    }
    json_object_put(o);
    if (rc == DAC_OK) {
        if (exchange_query(x, "clear", clear, sizeof(clear)) && strcmp(clear, "0") != 0)
            clear_scripts(m);
        TAILQ_CONCAT(&m->scripts, &fresh, link);
        respond_ok(x);
        return;
    }
    while ((q = TAILQ_FIRST(&fresh))) {
        TAILQ_REMOVE(&fresh, q, link);
        script_free(q);
    }
    bad(x, err);
}

static void delete_script(struct exchange *x)
{
    clear_scripts(x->conn->mock);
    respond_ok(x);
}

static enum dac_err spec_from_body(struct exchange *x, struct spec *s,
                                   char err[SPEC_ERR_SIZE])
{
    struct json_object *o = NULL;
    enum dac_err rc = parse_body(x, &o, err);

    if (rc == DAC_OK && json_object_is_type(o, json_type_string))
        rc = spec_parse_words(s, json_object_get_string(o),
                              (size_t)json_object_get_string_len(o), err);
    else if (rc == DAC_OK)
        rc = spec_parse_json(s, o, NULL, err);
    json_object_put(o);
    return rc;
}

static void post_default(struct exchange *x)
{
    struct mock *m = x->conn->mock;
    char err[SPEC_ERR_SIZE] = "out of memory";
    struct spec s;

    spec_init(&s);
    if (spec_from_body(x, &s, err) != DAC_OK) {
        spec_free(&s);
        bad(x, err);
        return;
    }
    spec_free(&m->defaults);
    m->defaults = s; /* the strings move along */
    respond_ok(x);
}

/* --- limits, text, reset
 * ------------------------------------------------------------------ */

static void post_limits(struct exchange *x)
{
    struct mock *m = x->conn->mock;
    struct limits l = m->limits;
    struct json_object *o = NULL, *v;
    char err[SPEC_ERR_SIZE] = "out of memory";
    double rps, burst, concurrency;
    uint64_t slack = l.slack_ns;

    if (parse_body(x, &o, err) != DAC_OK || !json_object_is_type(o, json_type_object)) {
        json_object_put(o);
        bad(x, "the limits are an object: rps, burst, concurrency, slack");
        return;
    }
    rps = json_object_object_get_ex(o, "rps", &v) ? json_object_get_double(v) : l.rps;
    burst = json_object_object_get_ex(o, "burst", &v) ? json_object_get_double(v)
                                                      : (double)l.burst;
    concurrency = json_object_object_get_ex(o, "concurrency", &v)
                      ? json_object_get_double(v)
                      : (double)l.concurrency;
    if (json_object_object_get_ex(o, "slack", &v)) {
        const char *s = json_object_get_string(v);

        if (!s || !spec_parse_duration(s, strlen(s), &slack))
            rps = -1;
    }
    json_object_put(o);
    if (!(rps >= 0 && rps <= 1e9 && burst >= 0 && burst <= 1e9 && concurrency >= 0 &&
          concurrency <= 1e9)) {
        bad(x, "rps, burst and concurrency are 0 to 1e9, slack is a duration");
        return;
    }
    m->limits = (struct limits){.rps = rps,
                                .burst = (uint64_t)burst,
                                .concurrency = (uint64_t)concurrency,
                                .slack_ns = slack};
    respond_ok(x);
}

/* The text that a question gets: {"user": "...", spec keys…}. */
static void post_text(struct exchange *x)
{
    static const char *const own[] = {"user", NULL};
    struct answer a = {0};
    struct json_object *o = NULL, *user;
    char err[SPEC_ERR_SIZE] = "user (a string) is needed";
    struct buf b = BUF_INIT(WIRE_OUT_MAX);
    const char *text = NULL, *words;
    size_t len = 0, n = 0;
    struct spec s;
    bool ok;

    spec_init(&s);
    ok = parse_body(x, &o, err) == DAC_OK && json_object_is_type(o, json_type_object) &&
         json_object_object_get_ex(o, "user", &user) &&
         json_object_is_type(user, json_type_string) &&
         spec_overlay(&s, &x->conn->mock->defaults) == DAC_OK &&
         spec_parse_json(&s, o, own, err) == DAC_OK;
    if (ok) {
        text = json_object_get_string(user);
        len = (size_t)json_object_get_string_len(user);
        words = spec_find_directive(text, len, &n);
        ok = !words || spec_parse_words(&s, words, n, err) == DAC_OK;
    }
    if (ok) {
        static const struct header text_type[] = {{"content-type", "text/plain"}};

        answer_init(&a, &s, text, len);
        for (uint64_t i = 0; i < a.tokens; i++)
            answer_token(&a, i, &b);
        exchange_respond(x, 200, text_type, 1, b.len ? b.data : "", b.len);
        answer_free(&a);
    } else {
        bad(x, err);
    }
    json_object_put(o);
    spec_free(&s);
    buf_free(&b);
}

static void post_reset(struct exchange *x)
{
    struct mock *m = x->conn->mock;
    struct stats old;
    struct call *c;
    char err[SPEC_ERR_SIZE];

    while ((c = TAILQ_FIRST(&m->calls)))
        call_drop(c);
    barrier_reset_all(m);
    clear_scripts(m);
    journal_clear(&m->journal);
    old = m->stats;
    m->stats = (struct stats){.open = old.open, .connections = old.connections};
    m->limits = m->start_limits;
    spec_free(&m->defaults);
    if (spec_overlay(&m->defaults, &m->start_defaults) != DAC_OK)
        snprintf(err, sizeof(err), "out of memory");
    mock_changed(m);
    respond_ok(x);
}

/* --- barriers
 * ----------------------------------------------------------------------------- */

static void print_barrier(const struct barrier *b, struct buf *out)
{
    buf_puts(out, "{\"name\":");
    json_put_string(out, b->name, strlen(b->name));
    buf_printf(out, ",\"waiting\":%" PRIu64 ",\"open\":%s,\"credit\":%" PRIu64 "}",
               b->count, b->open ? "true" : "false", b->credit);
}

static void answer_barrier(struct exchange *x, const char *name)
{
    struct mock *m = x->conn->mock;
    struct barrier *b;
    struct buf out = BUF_INIT(65536);
    uint64_t n = 0;
    char text[8];

    if (!*name || strlen(name) >= SPEC_NAME_SIZE || !query_number(x, "n", &n)) {
        bad(x, "a barrier's name has up to 47 bytes, n is a number");
        return;
    }
    b = barrier_get(m, name);
    if (!b) {
        mock_error(x, 500, "server_error", "mock_no_memory", "out of memory");
        return;
    }
    if (strcmp(x->method, "POST") == 0) {
        if (exchange_query(x, "close", text, sizeof(text))) {
            b->open = false;
            b->credit = 0;
        } else {
            barrier_open(b, n, n == 0);
        }
    }
    print_barrier(b, &out);
    respond(x, 200, &out);
    buf_free(&out);
}

/* --- long polls
 * ---------------------------------------------------------------------------- */

struct condition {
    size_t counter;
    int op; /* -1: at most, 0: exactly, 1: at least */
    uint64_t value;
};

struct waiter {
    struct exchange *x;
    struct event timer;
    struct condition conditions[WAIT_CONDITIONS];
    size_t count;
    char barrier[SPEC_NAME_SIZE]; /* "waiting" counts this one; "": all */
    TAILQ_ENTRY(waiter) link;
};

static void waiter_free(struct mock *m, struct waiter *w)
{
    evtimer_del(&w->timer);
    TAILQ_REMOVE(&m->waiters, w, link);
    free(w);
}

static void waiter_gone(struct exchange *x, void *user, enum gone_how how)
{
    (void)how;
    waiter_free(x->conn->mock, user);
}

static const struct exchange_ops waiter_ops = {.on_gone = waiter_gone};

static void waiter_answer(struct waiter *w, bool timed_out)
{
    struct exchange *x = w->x;
    struct buf b = BUF_INIT(65536);

    x->ops = NULL;
    waiter_free(x->conn->mock, w);
    print_stats(x->conn->mock, timed_out, &b);
    respond(x, timed_out ? 408 : 200, &b);
    buf_free(&b);
}

static bool waiter_holds(const struct mock *m, const struct waiter *w)
{
    for (size_t i = 0; i < w->count; i++) {
        const struct condition *k = &w->conditions[i];
        uint64_t v = counter(&m->stats, k->counter);
        struct barrier *b;

        if (w->barrier[0] &&
            counters[k->counter].offset == offsetof(struct stats, waiting)) {
            v = 0;
            TAILQ_FOREACH (b, &m->barriers, link) {
                if (strcmp(b->name, w->barrier) == 0)
                    v = b->count;
            }
        }
        if ((k->op > 0 && v < k->value) || (k->op < 0 && v > k->value) ||
            (k->op == 0 && v != k->value))
            return false;
    }
    return true;
}

void control_check_waiters(struct mock *m)
{
    struct waiter *w, *next;

    for (w = TAILQ_FIRST(&m->waiters); w; w = next) {
        next = TAILQ_NEXT(w, link);
        if (waiter_holds(m, w))
            waiter_answer(w, false);
    }
}

static void waiter_on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    waiter_answer(arg, true);
}

/* Reads the conditions out of the query: "5", "=5", ">=5" or "<=5" for each counter. */
static bool read_conditions(struct exchange *x, struct waiter *w)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(counters); i++) {
        struct condition k = {.counter = i, .op = counters[i].level ? 0 : 1};
        char text[32];
        const char *p = text;

        if (!exchange_query(x, counters[i].name, text, sizeof(text)))
            continue;
        if (*p == '<' || *p == '>')
            k.op = *p++ == '<' ? -1 : 1;
        else if (*p == '=')
            k.op = 0;
        p += *p == '=';
        if (w->count == WAIT_CONDITIONS ||
            !bytes_parse_u64(p, strlen(p), UINT64_MAX / 2, &k.value))
            return false;
        w->conditions[w->count++] = k;
    }
    return w->count > 0;
}

static void get_wait(struct exchange *x)
{
    struct mock *m = x->conn->mock;
    struct waiter *w = calloc(1, sizeof(*w));
    uint64_t timeout = WAIT_DEFAULT_NS;
    struct timeval tv;
    char text[32];

    if (!w || !read_conditions(x, w) ||
        (exchange_query(x, "timeout", text, sizeof(text)) &&
         !spec_parse_duration(text, strlen(text), &timeout))) {
        free(w);
        bad(x,
            "a counter is needed (calls=3, active=0, active=>=3); timeout is a duration");
        return;
    }
    exchange_query(x, "barrier", w->barrier, sizeof(w->barrier));
    w->x = x;
    x->ops = &waiter_ops;
    x->user = w;
    evtimer_assign(&w->timer, m->base, waiter_on_timer, w);
    TAILQ_INSERT_TAIL(&m->waiters, w, link);
    if (waiter_holds(m, w)) {
        waiter_answer(w, false);
        return;
    }
    tv.tv_sec = (time_t)(timeout / NS_PER_S);
    tv.tv_usec = (suseconds_t)(timeout % NS_PER_S / NS_PER_US);
    evtimer_add(&w->timer, &tv);
}

void control_request(struct exchange *x)
{
    static const struct {
        const char *path, *method;
        void (*answer)(struct exchange *);
    } routes[] = {
        {"/mock/stats", "GET", get_stats},
        {"/mock/log", "GET", get_log},
        {"/mock/wait", "GET", get_wait},
        {"/mock/reset", "POST", post_reset},
        {"/mock/script", "POST", post_script},
        {"/mock/script", "DELETE", delete_script},
        {"/mock/default", "POST", post_default},
        {"/mock/limits", "POST", post_limits},
        {"/mock/text", "POST", post_text},
    };

    for (size_t i = 0; i < DAC_ARRAY_LEN(routes); i++) {
        if (strcmp(x->path, routes[i].path) == 0 &&
            strcmp(x->method, routes[i].method) == 0) {
            routes[i].answer(x);
            return;
        }
    }
    if (strncmp(x->path, "/mock/barrier/", 14) == 0)
        answer_barrier(x, x->path + 14);
    else
        mock_error(x, 404, "invalid_request_error", "mock_not_found",
                   "no such path or wrong method under /mock/");
}
