/*
 * Threads: creating, listing, showing one, renaming and deleting it, listing its
 * messages.
 *
 * A change is looked up first, so that what is not there is a 404, and then handed to the
 * recorder like a new thread: answered after its commit. Deleting is a mark in the store.
 */
#include <stdio.h>
#include <stdlib.h>
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
            http_respond_no_memory(ex);
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

/* --- changes ------------------------------------------------------------------------ */

static void on_thread_to_change(void *arg, enum dac_err e, const struct store_thread *t)
{
    struct read *rd = arg;
    struct api *api = rd->api;
    struct ask *ask = rd->ask;

    rd->ask = NULL;
    ask->ex = read_done(rd);
    if (e == DAC_OK) {
        ask->thread.created_us = t->created_us;
        flights_ask(api->flights, ask);
    } else {
        read_refuse(ask->ex, e, "thread");
    }
    ask_free(ask);
}

/* Takes the ask over. */
static void look_up_and_change(struct api *api, struct http_exchange *ex, struct ask *ask)
{
    struct read *rd = read_new(api, ex);

    if (!rd) {
        ask_free(ask);
        return;
    }
    rd->ask = ask;
    read_started(rd, store_read_thread(api->reader, ask->thread.org,
                                       &ask->thread.thread_id, on_thread_to_change, rd));
}

/* An ask for a change of the thread in the path; NULL: refused. */
static struct ask *change_new(struct http_exchange *ex, enum thread_op op)
{
    char org[ORG_MAX + 1];
    struct id id;

    if (!input_org(ex, org) || !input_path_id(ex, 0, "thread", &id))
        return NULL;
    struct ask *ask = calloc(1, sizeof *ask);
    if (!ask) {
        http_respond_no_memory(ex);
        return NULL;
    }
    ask->kind = FLIGHT_THREAD;
    ask->dialect = &native_thread;
    turn_request_init(&ask->request);
    ask->thread.op = op;
    ask->thread.thread_id = id;
    ask->thread.title.max = TITLE_MAX * 3;
    memcpy(ask->thread.org, org, sizeof ask->thread.org);
    return ask;
}

void api_thread_patch(struct http_exchange *ex, void *ctx)
{
    static const char *const known[] = {"title", NULL};
    struct json_object *body, *title;
    const char *text;
    size_t n;

    if (!input_object(ex, false, &body))
        return;
    bool ok = input_known(ex, body, known);
    if (ok && !json_object_object_get_ex(body, "title", &title)) {
        input_refuse(ex, 400, "missing_field", "title",
                     "title must be given: a string, or null for none");
        ok = false;
    }
    struct ask *ask = NULL;
    if (ok && (!title || input_string(ex, body, "title", TITLE_MAX, &text, &n)))
        ask = change_new(ex, THREAD_TITLE);
    if (ask) {
        if (title)
            utf8_put_storable(&ask->thread.title, text, n);
        look_up_and_change(ctx, ex, ask);
    }
    json_object_put(body);
}

void api_thread_delete(struct http_exchange *ex, void *ctx)
{
    struct ask *ask = change_new(ex, THREAD_DELETE);

    if (ask)
        look_up_and_change(ctx, ex, ask);
}

/* --- messages ----------------------------------------------------------------------- */

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
