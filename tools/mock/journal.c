/*
 * The ring of log entries and its JSON form. The oldest entries make room; so a log of
 * any length costs a fixed amount of memory. Single thread.
 */
#include "tools/mock/journal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"

#define JOURNAL_BYTES_MAX ((size_t)128 << 20)

bool journal_init(struct journal *j, uint64_t size)
{
    *j = (struct journal){.size = size, .first = 1, .next = 1};
    j->ring = calloc(size, sizeof(*j->ring));
    return j->ring != NULL;
}

void journal_request_free(struct journal_request *req)
{
    if (!req)
        return;
    free(req->model);
    free(req->user);
    free(req->path);
    free(req->headers);
    free(req->body);
    free(req);
}

static size_t text_size(const char *s)
{
    return s ? strlen(s) + 1 : 0;
}

static size_t request_size(const struct journal_request *r)
{
    if (!r)
        return 0;
    return sizeof(*r) + text_size(r->model) + text_size(r->user) + text_size(r->path) +
           text_size(r->headers) + text_size(r->body);
}

static void drop_oldest(struct journal *j)
{
    struct journal_entry *e = &j->ring[j->first % j->size];

    j->bytes -= request_size(e->req);
    journal_request_free(e->req);
    e->req = NULL;
    j->first++;
}

void journal_clear(struct journal *j)
{
    while (j->first < j->next)
        drop_oldest(j);
}

void journal_free(struct journal *j)
{
    if (j->ring)
        journal_clear(j);
    free(j->ring);
    j->ring = NULL;
}

void journal_add(struct journal *j, const char *event, uint64_t call, uint64_t t_ns,
                 uint64_t after_ns, uint64_t tokens, int status,
                 struct journal_request *req)
{
    struct journal_entry *e;

    j->bytes += request_size(req);
    while (j->first < j->next &&
           (j->next - j->first >= j->size || j->bytes > JOURNAL_BYTES_MAX))
        drop_oldest(j);
    e = &j->ring[j->next % j->size];
    *e = (struct journal_entry){.seq = j->next,
                                .t_ns = t_ns,
                                .call = call,
                                .wall_us = clock_wall_us(),
                                .event = event,
                                .after_ns = after_ns,
                                .tokens = tokens,
                                .status = status,
                                .req = req};
    j->next++;
}

static void put_text(struct buf *b, const char *name, const char *s)
{
    buf_printf(b, ",\"%s\":", name);
    if (s)
        json_put_string(b, s, strlen(s));
    else
        buf_puts(b, "null");
}

/* The kept lines as an object; of a name that comes twice, both values in one string. */
static void put_headers(struct buf *b, const char *lines)
{
    struct json_object *o = json_object_new_object();

    for (const char *p = lines; o && p && *p;) {
        const char *end = strchrnul(p, '\n');
        const char *colon = memmem(p, (size_t)(end - p), ": ", 2);

        if (colon) {
            char *name = strndup(p, (size_t)(colon - p));
            char *value = strndup(colon + 2, (size_t)(end - colon - 2));
            struct json_object *old = NULL;
            char *both = NULL;

            if (name && value && json_object_object_get_ex(o, name, &old) &&
                asprintf(&both, "%s, %s", json_object_get_string(old), value) < 0)
                both = NULL;
            if (name && value)
                json_object_object_add(o, name,
                                       json_object_new_string(both ? both : value));
            free(both);
            free(name);
            free(value);
        }
        p = *end ? end + 1 : end;
    }
    buf_puts(b, ",\"headers\":");
    json_put_object(b, o);
    json_object_put(o);
}

static void put_request(struct buf *b, const struct journal_request *r, bool body)
{
    put_text(b, "model", r->model);
    put_text(b, "user", r->user);
    put_text(b, "path", r->path);
    put_text(b, "http", r->version);
    put_text(b, "body_sha256", r->body_sha256);
    buf_printf(b,
               ",\"messages\":%" PRIu64 ",\"body_len\":%" PRIu64 ",\"conn\":%" PRIu64
               ",\"stream_id\":%d,\"tls\":%s,\"stream\":%s",
               r->messages, r->body_len, r->conn, (int)r->stream_id,
               r->tls ? "true" : "false", r->stream ? "true" : "false");
    put_headers(b, r->headers);
    if (body) {
        put_text(b, "body", r->body);
        buf_printf(b, ",\"body_cut\":%s", r->body_cut ? "true" : "false");
    }
}

void journal_print(const struct journal *j, const struct journal_filter *f,
                   struct buf *out)
{
    uint64_t seq = f->since + 1 > j->first ? f->since + 1 : j->first;
    uint64_t printed = 0;

    buf_puts(out, "{\"events\":[");
    for (; seq < j->next && printed < f->limit; seq++) {
        const struct journal_entry *e = &j->ring[seq % j->size];

        if ((f->call && e->call != f->call) ||
            (f->event && strcmp(e->event, f->event) != 0))
            continue;
        buf_printf(out,
                   "%s{\"seq\":%" PRIu64 ",\"t_ns\":%" PRIu64 ",\"wall\":%" PRId64
                   ".%06d,\"call\":%" PRIu64 ",\"event\":\"%s\"",
                   printed ? ",\n" : "", e->seq, e->t_ns, e->wall_us / 1000000,
                   (int)(e->wall_us % 1000000), e->call, e->event);
        if (e->req)
            put_request(out, e->req, f->body);
        else
            buf_printf(out, ",\"after_ns\":%" PRIu64 ",\"tokens\":%" PRIu64, e->after_ns,
                       e->tokens);
        if (e->status)
            buf_printf(out, ",\"status\":%d", e->status);
        buf_putc(out, '}');
        printed++;
    }
    buf_printf(out, "],\"next\":%" PRIu64 "}\n", seq - 1);
}
