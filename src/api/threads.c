/*
 * Threads: creating, listing, showing one, listing its messages.
 */
#include <stdio.h>
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/read.h"
#include "api/routes.h"
#include "base/clock.h"

#define TITLE_MAX     512
#define PAGE_MAX      200
#define PAGE_THREADS  50
#define PAGE_MESSAGES 100
#define LIST_MAX      (256u << 20)

void api_threads_create(struct http_exchange *ex, void *ctx)
{
    static const char *const known[] = {"title", NULL};
    struct api *api = ctx;
    struct ask ask = {.ex = ex, .kind = FLIGHT_THREAD, .dialect = &native_thread};
    struct json_object *body;
    const char *title;
    size_t n;

    if (!input_object(ex, true, &body))
        return;
    ask.thread.title.max = TITLE_MAX * 3;
    if (input_known(ex, body, known) && input_org(ex, ask.thread.org) &&
        input_string(ex, body, "title", TITLE_MAX, &title, &n)) {
        ask.thread.thread_id = id_new();
        ask.thread.created_us = clock_wall_us();
        if (title)
            utf8_put_storable(&ask.thread.title, title, n);
        turn_request_init(&ask.request);
        if (ask.thread.title.failed)
            input_no_memory(ex);
        else
            flights_ask(api->flights, &ask);
    }
    json_object_put(body);
}

static void put_thread(struct buf *b, const struct store_thread *t)
{
    char id[ID_TEXT_SIZE];
    char at[32];

    id_format(&t->id, id);
    clock_format_rfc3339(t->created_us, at);
    buf_printf(b, "{\"thread_id\":\"%s\",\"title\":", id);
    if (t->title.s)
        json_put_string(b, t->title.s, t->title.n);
    else
        buf_puts(b, "null");
    buf_printf(b, ",\"created_at\":\"%s\"}", at);
}

/* `last`: id of the last row, NULL if there is none. */
static void put_next(struct buf *b, bool more, const struct id *last)
{
    char id[ID_TEXT_SIZE];
    if (more && last) {
        id_format(last, id);
        buf_printf(b, "],\"next\":\"%s\"}", id);
    } else {
        buf_puts(b, "],\"next\":null}");
    }
}

static void on_threads(void *arg, enum dac_err e, const struct store_thread *t, size_t n,
                       bool more)
{
    struct http_exchange *ex = read_done(arg);
    struct buf b = BUF_INIT(LIST_MAX);

    if (e != DAC_OK) {
        read_refuse(ex, e, "thread");
        return;
    }
    buf_puts(&b, "{\"threads\":[");
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            buf_putc(&b, ',');
        put_thread(&b, &t[i]);
    }
    put_next(&b, more, n > 0 ? &t[n - 1].id : NULL);
    native_respond(ex, 200, &b);
}

void api_threads_list(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    char org[ORG_MAX + 1];
    struct id after;
    size_t limit;

    if (!input_org(ex, org) || !input_page(ex, PAGE_THREADS, PAGE_MAX, &limit, &after))
        return;
    struct read *rd = read_new(api, ex);
    if (rd)
        read_started(rd,
                     store_read_threads(api->reader, org, &after, limit, on_threads, rd));
}

static void on_thread(void *arg, enum dac_err e, const struct store_thread *t)
{
    struct http_exchange *ex = read_done(arg);
    struct buf b = BUF_INIT(LIST_MAX);

    if (e != DAC_OK) {
        read_refuse(ex, e, "thread");
        return;
    }
    put_thread(&b, t);
    native_respond(ex, 200, &b);
}

void api_thread_get(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    char org[ORG_MAX + 1];
    struct id id;

    if (!input_org(ex, org) || !input_path_id(ex, 0, "thread", &id))
        return;
    struct read *rd = read_new(api, ex);
    if (rd)
        read_started(rd, store_read_thread(api->reader, org, &id, on_thread, rd));
}

static void put_message(struct buf *b, const struct store_message *m)
{
    char id[ID_TEXT_SIZE];
    char turn[ID_TEXT_SIZE];
    char at[32];

    id_format(&m->id, id);
    id_format(&m->turn_id, turn);
    clock_format_rfc3339(m->created_us, at);
    buf_printf(b, "{\"id\":\"%s\",\"turn_id\":\"%s\",\"role\":\"%s\",\"content\":", id,
               turn, m->role);
    json_put_string(b, m->content.s ? m->content.s : "", m->content.n);
    if (m->citations.s) {
        buf_puts(b, ",\"citations\":");
        buf_append(b, m->citations.s, m->citations.n);
    }
    buf_printf(b, ",\"created_at\":\"%s\"}", at);
}

static void on_messages(void *arg, enum dac_err e, const struct store_message *m,
                        size_t n, bool more)
{
    struct http_exchange *ex = read_done(arg);
    struct buf b = BUF_INIT(LIST_MAX);

    if (e != DAC_OK) {
        read_refuse(ex, e, "thread");
        return;
    }
    buf_puts(&b, "{\"messages\":[");
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            buf_putc(&b, ',');
        put_message(&b, &m[i]);
    }
    put_next(&b, more, n > 0 ? &m[n - 1].id : NULL);
    native_respond(ex, 200, &b);
}

void api_thread_messages(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    char org[ORG_MAX + 1];
    struct id id, after;
    size_t limit;

    if (!input_org(ex, org) || !input_path_id(ex, 0, "thread", &id) ||
        !input_page(ex, PAGE_MESSAGES, PAGE_MAX, &limit, &after))
        return;
    struct read *rd = read_new(api, ex);
    if (rd)
        read_started(rd, store_read_messages(api->reader, org, &id, &after, limit,
                                             on_messages, rd));
}
