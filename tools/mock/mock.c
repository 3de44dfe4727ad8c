/*
 * What the rest of the mock provider shares: routing, error answers, its own rate limits,
 * and barriers.
 */
#include "tools/mock/mock.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "tools/mock/call.h"

void mock_changed(struct mock *m)
{
    if (!TAILQ_EMPTY(&m->waiters))
        event_active(&m->changed, EV_TIMEOUT, 0);
}

void mock_error(struct exchange *x, int status, const char *type, const char *code,
                const char *message)
{
    static const struct header h[] = {{"content-type", "application/json"}};
    struct buf b = BUF_INIT(65536);

    mock_changed(x->conn->mock);
    buf_puts(&b, "{\"error\":{\"message\":");
    json_put_string(&b, message, strlen(message));
    buf_printf(&b, ",\"type\":\"%s\",\"param\":null,\"code\":\"%s\"}}\n", type, code);
    exchange_respond(x, status, h, DAC_ARRAY_LEN(h), b.len ? b.data : "", b.len);
    buf_free(&b);
}

static void answer_models(struct exchange *x)
{
    static const struct header h[] = {{"content-type", "application/json"}};
    struct buf b = BUF_INIT(1 << 20);
    bool first = true;

    buf_puts(&b, "{\"object\":\"list\",\"data\":[");
    for (const char *p = x->conn->mock->models; *p; first = false) {
        size_t n = strcspn(p, ",");

        buf_puts(&b, first ? "{\"id\":" : ",{\"id\":");
        json_put_string(&b, p, n);
        buf_puts(&b,
                 ",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"mock\"}");
        p += n + (p[n] == ',');
    }
    buf_puts(&b, "]}\n");
    exchange_respond(x, 200, h, 1, b.len ? b.data : "", b.len);
    buf_free(&b);
}

static void answer_health(struct exchange *x)
{
    static const struct header h[] = {{"content-type", "application/json"}};
    static const char body[] = "{\"status\":\"ok\"}\n";

    exchange_respond(x, 200, h, 1, body, sizeof(body) - 1);
}

void mock_dispatch(struct exchange *x)
{
    static const struct {
        const char *path, *method;
        void (*answer)(struct exchange *);
    } routes[] = {
        {"/v1/chat/completions", "POST", chat_request},
        {"/chat/completions", "POST", chat_request},
        {"/v1/models", "GET", answer_models},
        {"/models", "GET", answer_models},
        {"/health", "GET", answer_health},
    };
    struct conn *c = x->conn;

    if (strncmp(x->path, "/mock/", 6) == 0) {
        control_request(x);
        return;
    }
    if (!c->counted) {
        c->counted = true;
        c->mock->stats.connections++;
        c->mock->stats.connections_total++;
        mock_changed(c->mock);
    }
    for (size_t i = 0; i < DAC_ARRAY_LEN(routes); i++) {
        if (strcmp(x->path, routes[i].path) != 0)
            continue;
        if (strcmp(x->method, routes[i].method) == 0)
            routes[i].answer(x);
        else
            mock_error(x, 405, "invalid_request_error", "mock_method", "wrong method");
        return;
    }
    mock_error(x, 404, "invalid_request_error", "mock_not_found", "no such path");
}

bool limits_admit(struct limits *l, uint64_t active, uint64_t now_ns, uint64_t *wait_ns)
{
    uint64_t interval, allowance, tat;

    if (l->concurrency && active >= l->concurrency) {
        *wait_ns = NS_PER_S;
        return false;
    }
    if (l->rps <= 0)
        return true;
    interval = (uint64_t)((double)NS_PER_S / l->rps);
    allowance = interval * ((l->burst ? l->burst : 1) - 1) + l->slack_ns;
    tat = l->tat_ns > now_ns ? l->tat_ns : now_ns;
    if (tat - now_ns > allowance) {
        *wait_ns = tat - now_ns - allowance;
        return false;
    }
    l->tat_ns = tat + interval;
    return true;
}

struct barrier *barrier_get(struct mock *m, const char *name)
{
    struct barrier *b;

    TAILQ_FOREACH (b, &m->barriers, link) {
        if (strcmp(b->name, name) == 0)
            return b;
    }
    b = calloc(1, sizeof(*b));
    if (!b)
        return NULL;
    strncpy(b->name, name, sizeof(b->name) - 1);
    TAILQ_INIT(&b->waiting);
    TAILQ_INSERT_TAIL(&m->barriers, b, link);
    return b;
}

bool barrier_try(struct barrier *b)
{
    if (b->open)
        return true;
    if (b->credit == 0)
        return false;
    b->credit--;
    return true;
}

void barrier_open(struct barrier *b, uint64_t n, bool all)
{
    struct call *c;

    if (all)
        b->open = true;
    while ((all || n > 0) && (c = TAILQ_FIRST(&b->waiting))) {
        call_pass(c);
        n -= !all;
    }
    if (!all)
        b->credit += n;
}

void barrier_reset_all(struct mock *m)
{
    struct barrier *b;

    /* Only without running calls: those that wait point here. */
    while ((b = TAILQ_FIRST(&m->barriers))) {
        DAC_ASSERT(b->count == 0);
        TAILQ_REMOVE(&m->barriers, b, link);
        free(b);
    }
}
