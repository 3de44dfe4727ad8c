/*
 * The questions that a load asks: paths and bodies in both dialects. How long the mock's
 * answer is stands in the question itself, as a directive that a real provider would take
 * for text.
 */
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/json.h"
#include "tools/bench/bench.h"

const char *questions_headers(const struct bench_options *o)
{
    static char line[256];

    snprintf(line, sizeof(line), "x-org-id: %s\r\n", o->org);
    return line;
}

/* The thread's id from the answer of POST /api/threads/. */
static bool make_thread(const struct bench_options *o, char out[40])
{
    char answer[2048];
    int status = http_once(&o->url, "/api/threads/", questions_headers(o),
                           "{\"title\":\"dac-bench\"}", answer, sizeof(answer));
    struct json_object *root = json_tokener_parse(answer), *id = NULL;
    bool made = status == 201 && json_object_object_get_ex(root, "thread_id", &id);

    if (made)
        snprintf(out, 40, "%s", json_object_get_string(id));
    else
        fprintf(stderr, "dac-bench: no thread could be made at %s (status %d)\n",
                o->url.host, status);
    json_object_put(root);
    return made;
}

bool questions_init(struct questions *q, const struct bench_options *o, bool stream)
{
    enum thread_choice choice = o->path ? THREADS_NONE : o->threads;

    *q = (struct questions){.o = o, .stream = stream};
    random_bytes(&q->nonce, sizeof(q->nonce));
    q->thread_count = choice == THREADS_NONE ? 0 : choice == THREADS_NEW ? o->clients : 1;
    if (q->thread_count == 0)
        return true;
    q->threads = calloc(q->thread_count, sizeof(*q->threads));
    if (!q->threads)
        return false;
    if (choice == THREADS_GIVEN) {
        snprintf(q->threads[0], sizeof(q->threads[0]), "%s", o->thread);
        return true;
    }
    for (size_t i = 0; i < q->thread_count; i++) {
        if (!make_thread(o, q->threads[i]))
            return false;
    }
    return true;
}

void questions_free(struct questions *q)
{
    free(q->threads);
    *q = (struct questions){0};
}

static void put_content(const struct questions *q, size_t index, size_t n,
                        struct buf *body)
{
    const struct bench_options *o = q->o;
    struct buf text = BUF_INIT((size_t)1 << 20);

    buf_printf(&text, "bench %016" PRIx64 "-%zu", q->nonce, n);
    if (!o->identical)
        buf_printf(&text, "-%zu", index);
    buf_printf(&text,
               " [mock tokens=%zu token_size=%zu gap=%" PRIu64 "us ttft=%" PRIu64
               "us%s%s]",
               o->tokens, o->token_size, o->gap_ns / NS_PER_US, o->ttft_ns / NS_PER_US,
               *o->extra ? " " : "", o->extra);
    if (text.failed)
        body->failed = true;
    else
        json_put_string(body, text.data, text.len);
    buf_free(&text);
}

void questions_write(void *arg, size_t index, size_t n, struct buf *path,
                     struct buf *body)
{
    struct questions *q = arg;
    const struct bench_options *o = q->o;

    if (q->thread_count == 0) {
        buf_puts(path, o->path);
        buf_printf(body,
                   "{\"model\":\"%s\",\"stream\":%s,\"messages\":[{\"role\":\"user\","
                   "\"content\":",
                   o->model, q->stream ? "true" : "false");
        put_content(q, index, n, body);
        buf_puts(body, "}]}");
        return;
    }
    buf_printf(path, "/api/threads/%s/messages%s", q->threads[index % q->thread_count],
               q->stream ? "/stream" : "");
    buf_printf(body,
               "{\"role\":\"user\",\"provider\":\"%s\",\"model\":\"%s\",\"content\":",
               o->provider, o->model);
    put_content(q, index, n, body);
    buf_putc(body, '}');
}
