/*
 * Keeping an exchange while the store is read.
 */
#include "api/read.h"

#include <stdio.h>
#include <stdlib.h>

#include "api/input.h"
#include "base/clock.h"
#include "http/problem.h"

static void read_free(struct read *rd)
{
    ask_free(rd->ask);
    free(rd);
}

static void on_gone(struct http_exchange *ex, void *user)
{
    struct read *rd = user;
    (void)ex;
    if (rd->query)
        store_query_cancel(rd->query);
    read_free(rd);
}

static const struct http_callbacks callbacks = {.on_gone = on_gone};

struct read *read_new(struct api *api, struct http_exchange *ex)
{
    struct read *rd = calloc(1, sizeof *rd);
    if (!rd) {
        http_respond_no_memory(ex);
        return NULL;
    }
    rd->api = api;
    rd->ex = ex;
    http_set_callbacks(ex, &callbacks, rd);
    return rd;
}

bool read_started(struct read *rd, struct store_query *q)
{
    rd->query = q;
    rd->started_ns = clock_now_ns();
    if (q)
        return true;
    http_respond_no_memory(read_done(rd));
    return false;
}

struct http_exchange *read_done(struct read *rd)
{
    static const struct http_callbacks none = {0};
    struct http_exchange *ex = rd->ex;
    http_set_callbacks(ex, &none, NULL);
    read_free(rd);
    return ex;
}

void read_refuse(struct http_exchange *ex, enum dac_err e, const char *what)
{
    struct http_problem p = {.offset = -1};
    char code[40];

    if (e == DAC_E_NOT_FOUND) {
        snprintf(code, sizeof code, "%s_not_found", what);
        p.status = 404;
        p.code = code;
        http_respond_problem(ex, &p, "there is no %s with this id", what);
        return;
    }
    p.status = 503;
    p.code = "store_unavailable";
    p.retryable = true;
    p.retry_after_ms = 1000;
    http_respond_problem(ex, &p, "the store could not be read: %s; try again",
                         dac_err_text(e));
}
