/*
 * HTTP/2 of the mock provider (RFC 9113) on nghttp2's server session. Each stream is an
 * exchange. Nothing is framed while nghttp2 calls back: answers that are given there go
 * out when the input has been read, by h2_collect().
 */
#include "tools/mock/wire.h"

#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/mock/mock.h"

#define RESPONSE_HEADERS_MAX 8
#define STREAMS_MAX          10000

static struct exchange *stream_of(nghttp2_session *s, int32_t id)
{
    return nghttp2_session_get_stream_user_data(s, id);
}

static char *copy_into_head(struct exchange *x, const uint8_t *p, size_t n)
{
    char *at = buf_reserve(&x->head, n + 1);

    if (!at)
        return NULL;
    memcpy(at, p, n);
    at[n] = '\0';
    x->head.len += n + 1;
    return at;
}

static int on_begin_headers(nghttp2_session *s, const nghttp2_frame *f, void *arg)
{
    struct conn *c = arg;
    struct exchange *x;

    if (f->hd.type != NGHTTP2_HEADERS || f->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    x = exchange_new(c);
    /* Pointers into the head must stay: it gets its whole size now. */
    if (!x || !buf_reserve(&x->head, WIRE_HEAD_MAX)) {
        exchange_free(x);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    x->stream_id = f->hd.stream_id;
    TAILQ_INSERT_TAIL(&c->streams, x, link);
    nghttp2_session_set_stream_user_data(s, x->stream_id, x);
    c->mock->stats.h2_streams++;
    return 0;
}

static int on_header(nghttp2_session *s, const nghttp2_frame *f, const uint8_t *name,
                     size_t name_len, const uint8_t *value, size_t value_len,
                     uint8_t flags, void *arg)
{
    struct exchange *x = stream_of(s, f->hd.stream_id);
    char *n, *v, *query;

    (void)flags;
    (void)arg;
    if (!x || x->begun || x->head.len + name_len + value_len + 2 > WIRE_HEAD_MAX)
        return x ? NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE : 0;
    n = copy_into_head(x, name, name_len);
    v = copy_into_head(x, value, value_len);
    if (!n || !v)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    if (strcmp(n, ":method") == 0) {
        x->method = v;
    } else if (strcmp(n, ":path") == 0) {
        query = strchr(v, '?');
        if (query)
            *query++ = '\0';
        x->path = v;
        x->query = query ? query : "";
    } else if (n[0] != ':' && !exchange_add_header(x, n, v)) {
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    return 0;
}

static int on_data(nghttp2_session *s, uint8_t flags, int32_t id, const uint8_t *p,
                   size_t n, void *arg)
{
    struct exchange *x = stream_of(s, id);

    (void)flags;
    (void)arg;
    if (x && !x->begun && buf_append(&x->body, p, n) != DAC_OK)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    return 0;
}

static int on_frame(nghttp2_session *s, const nghttp2_frame *f, void *arg)
{
    struct conn *c = arg;
    struct exchange *x;

    if (c->dead)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if ((f->hd.type != NGHTTP2_HEADERS && f->hd.type != NGHTTP2_DATA) ||
        !(f->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0;
    x = stream_of(s, f->hd.stream_id);
    if (x && !x->begun && !x->ops && !x->over) {
        buf_cstr(&x->body);
        mock_dispatch(x);
    }
    return 0;
}

/* The stream is over: answered whole, reset by the client, or aborted by the mock. */
static int on_close(nghttp2_session *s, int32_t id, uint32_t error, void *arg)
{
    struct conn *c = arg;
    struct exchange *x = stream_of(s, id);

    if (!x)
        return 0;
    if (x->ended && error == NGHTTP2_NO_ERROR)
        exchange_tell_done(x);
    else
        exchange_tell_gone(x, GONE_RESET);
    TAILQ_REMOVE(&c->streams, x, link);
    nghttp2_session_set_stream_user_data(s, id, NULL);
    exchange_free(x);
    return 0;
}

bool h2_start(struct conn *c)
{
    static const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, STREAMS_MAX},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20},
    };
    nghttp2_session_callbacks *cb;
    int rc;

    if (nghttp2_session_callbacks_new(&cb) != 0)
        return false;
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_close);
    rc = nghttp2_session_server_new(&c->session, cb, c);
    nghttp2_session_callbacks_del(cb);
    if (rc != 0)
        return false;
    return nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings,
                                   DAC_ARRAY_LEN(settings)) == 0 &&
           nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0,
                                                 16 << 20) == 0;
}

void h2_free(struct conn *c)
{
    nghttp2_session_del(c->session);
    c->session = NULL;
}

/* Tells the streams that have room again; what they write is collected by the caller. */
static bool tell_writable(struct conn *c)
{
    struct exchange *x;

    TAILQ_FOREACH (x, &c->streams, link) {
        if (x->want_writable && !x->over && exchange_unsent(x) < WIRE_UNSENT_HIGH / 2) {
            x->want_writable = false;
            x->ops->on_writable(x, x->user);
            return true; /* the list may have changed */
        }
    }
    return false;
}

void h2_flush(struct conn *c)
{
    do {
        h2_collect(c);
        if (c->out.len == c->out_off)
            break;
        conn_flush(c);
    } while (!c->dead && !c->processing && c->out.len == c->out_off);
}

void h2_input(struct conn *c)
{
    ssize_t used;

    if (c->processing)
        return;
    if (c->in.len > 0) {
        c->processing = true;
        used =
            nghttp2_session_mem_recv(c->session, (const uint8_t *)c->in.data, c->in.len);
        c->processing = false;
        if (c->dead)
            return;
        if (used < 0) {
            c->mock->stats.bad_requests++;
            conn_gone(c, GONE_CLOSED);
            return;
        }
        buf_reset(&c->in);
    }
    do {
        h2_flush(c);
    } while (!c->dead && tell_writable(c));
    if (!c->dead && c->out.len == c->out_off && !nghttp2_session_want_read(c->session) &&
        !nghttp2_session_want_write(c->session))
        conn_gone(c, GONE_CLOSED);
}

static ssize_t read_body(nghttp2_session *s, int32_t id, uint8_t *to, size_t n,
                         uint32_t *flags, nghttp2_data_source *source, void *arg)
{
    struct exchange *x = source->ptr;
    size_t have = x->out.len - x->out_off;

    (void)s;
    (void)id;
    (void)arg;
    if (n > have)
        n = have;
    if (n > 0)
        memcpy(to, x->out.data + x->out_off, n);
    x->out_off += n;
    if (x->out_off == x->out.len) {
        buf_reset(&x->out);
        x->out_off = 0;
        if (x->ended) {
            *flags |= NGHTTP2_DATA_FLAG_EOF;
        } else if (n == 0) {
            x->deferred = true;
            return NGHTTP2_ERR_DEFERRED;
        }
    }
    return (ssize_t)n;
}

void h2_begin(struct exchange *x, int status, const struct header *h, size_t n)
{
    nghttp2_data_provider body = {.source.ptr = x, .read_callback = read_body};
    nghttp2_nv nv[RESPONSE_HEADERS_MAX + 2];
    char code[8];
    size_t count = 0;

    snprintf(code, sizeof(code), "%d", status);
    nv[count++] = (nghttp2_nv){(uint8_t *)(uintptr_t) ":status", (uint8_t *)code, 7,
                               strlen(code), NGHTTP2_NV_FLAG_NONE};
    nv[count++] =
        (nghttp2_nv){(uint8_t *)(uintptr_t) "server", (uint8_t *)(uintptr_t) "dac-mock",
                     6, 8, NGHTTP2_NV_FLAG_NONE};
    for (size_t i = 0; i < n && count < DAC_ARRAY_LEN(nv); i++) {
        if (!h[i].value)
            continue;
        nv[count++] = (nghttp2_nv){(uint8_t *)(uintptr_t)h[i].name,
                                   (uint8_t *)(uintptr_t)h[i].value, strlen(h[i].name),
                                   strlen(h[i].value), NGHTTP2_NV_FLAG_NONE};
    }
    nghttp2_submit_response(x->conn->session, x->stream_id, nv, count, &body);
}

static void resume(struct exchange *x)
{
    if (!x->deferred)
        return;
    x->deferred = false;
    nghttp2_session_resume_data(x->conn->session, x->stream_id);
}

void h2_write(struct exchange *x, const void *data, size_t n)
{
    buf_append(&x->out, data, n);
    resume(x);
}

void h2_end(struct exchange *x)
{
    resume(x);
}

void h2_abort(struct exchange *x)
{
    x->aborting = true;
    h2_flush(x->conn);
}

static void frame(struct conn *c)
{
    const uint8_t *p;
    ssize_t n;

    while (c->out.len - c->out_off < 2 * WIRE_UNSENT_HIGH &&
           (n = nghttp2_session_mem_send(c->session, &p)) > 0)
        buf_append(&c->out, p, (size_t)n);
}

void h2_collect(struct conn *c)
{
    struct exchange *x;
    bool aborted = false;

    if (c->processing || c->dead)
        return;
    c->processing = true;
    frame(c);
    TAILQ_FOREACH (x, &c->streams, link) {
        if (x->aborting) {
            x->aborting = false;
            aborted = true;
            nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, x->stream_id,
                                      NGHTTP2_INTERNAL_ERROR);
        }
    }
    if (aborted)
        frame(c);
    c->processing = false;
}
