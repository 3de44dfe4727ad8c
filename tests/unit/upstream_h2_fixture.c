/*
 * The provider over TLS and HTTP/2: see upstream_fixture.h. One thread per connection,
 * with nghttp2's server session over memory. A stream that the client resets, or whose
 * connection it closes, is noted with the time.
 */
#include <check.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "upstream_fixture.h"

#define STREAMS_MAX 256

struct stream {
    int32_t id;
    struct buf body;
    struct seen_request *seen;
    const char *answer; /* still to be sent */
    bool hold;
    bool over;
};

struct h2 {
    struct connection *c;
    SSL *ssl;
    nghttp2_session *s;
    struct stream streams[STREAMS_MAX];
    int count;
};

static const char text_answer[] = TEXT("0") TEXT("1") TEXT("2") TEXT("3") TEXT("4")
    TEXT("5") TEXT("6") TEXT("7") TEXT("8") TEXT("9") STOP DONE;

static char big_answer[BIG_EVENTS * sizeof(TEXT("0")) + sizeof(STOP DONE)];

static void make_big_answer(void)
{
    char *p = big_answer;

    for (int i = 0; i < BIG_EVENTS; i++, p += strlen(p))
        memcpy(p, TEXT("0"), sizeof(TEXT("0")));
    memcpy(p, STOP DONE, sizeof(STOP DONE));
}

/* --- streams --------------------------------------------------------------------------
 */

static ssize_t read_answer(nghttp2_session *s, int32_t id, uint8_t *out, size_t n,
                           uint32_t *flags, nghttp2_data_source *source, void *arg)
{
    struct stream *st = source->ptr;
    size_t left = strlen(st->answer);

    (void)s;
    (void)id;
    (void)arg;
    if (left == 0 && st->hold)
        return NGHTTP2_ERR_DEFERRED;
    if (left > n)
        left = n;
    memcpy(out, st->answer, left);
    st->answer += left;
    if (*st->answer == '\0' && !st->hold) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        st->over = true;
    }
    return (ssize_t)left;
}

static int on_begin_headers(nghttp2_session *s, const nghttp2_frame *f, void *arg)
{
    struct h2 *h = arg;
    struct stream *st = &h->streams[h->count];

    if (f->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    ck_assert_int_lt(h->count, STREAMS_MAX);
    h->count++;
    *st = (struct stream){.id = f->hd.stream_id, .body = BUF_INIT(65536)};
    return nghttp2_session_set_stream_user_data(s, st->id, st);
}

static int on_data(nghttp2_session *s, uint8_t flags, int32_t id, const uint8_t *p,
                   size_t n, void *arg)
{
    struct stream *st = nghttp2_session_get_stream_user_data(s, id);

    (void)flags;
    (void)arg;
    buf_append(&st->body, p, n);
    return 0;
}

static void respond(struct h2 *h, struct stream *st)
{
    static nghttp2_nv head[] = {
        {(uint8_t *)":status", (uint8_t *)"200", 7, 3, 0},
        {(uint8_t *)"content-type", (uint8_t *)"text/event-stream", 12, 17, 0}};
    nghttp2_data_provider data = {.source.ptr = st, .read_callback = read_answer};
    const char *name = strstr(buf_cstr(&st->body), "\"content\":\"");

    ck_assert_ptr_nonnull(name);
    name += strlen("\"content\":\"");
    st->seen = provider_note(h->c->p, name, strcspn(name, "\""), h->c->number);
    if (strcmp(st->seen->script, "silent") == 0)
        return;
    st->hold = strcmp(st->seen->script, "hold") == 0;
    st->answer = st->hold ? TEXT("0") : text_answer;
    if (strcmp(st->seen->script, "big") == 0)
        st->answer = big_answer;
    nghttp2_submit_response(h->s, st->id, head, 2, &data);
}

static int on_frame(nghttp2_session *s, const nghttp2_frame *f, void *arg)
{
    struct stream *st = nghttp2_session_get_stream_user_data(s, f->hd.stream_id);
    struct h2 *h = arg;

    if (f->hd.type == NGHTTP2_RST_STREAM)
        atomic_fetch_add(&h->c->p->resets, 1);
    else if (st && (f->hd.flags & NGHTTP2_FLAG_END_STREAM))
        respond(h, st);
    return 0;
}

static void gone(struct stream *st)
{
    if (st->seen && !st->over)
        atomic_store(&st->seen->gone_ns, clock_now_ns());
    st->over = true;
}

static int on_close(nghttp2_session *s, int32_t id, uint32_t error, void *arg)
{
    struct stream *st = nghttp2_session_get_stream_user_data(s, id);

    (void)error;
    (void)arg;
    if (st)
        gone(st);
    return 0;
}

/* --- connection -----------------------------------------------------------------------
 */

static bool send_out(struct h2 *h)
{
    const uint8_t *p;
    ssize_t n;

    while ((n = nghttp2_session_mem_send(h->s, &p)) > 0)
        if (SSL_write(h->ssl, p, (int)n) != n)
            return false;
    return n == 0;
}

static bool read_in(struct h2 *h)
{
    uint8_t bytes[16384];
    struct pollfd f = {.fd = h->c->fd, .events = POLLIN};
    int n;

    if (SSL_pending(h->ssl) == 0 && poll(&f, 1, 20) <= 0)
        return true;
    n = SSL_read(h->ssl, bytes, sizeof(bytes));
    return n > 0 && nghttp2_session_mem_recv(h->s, bytes, (size_t)n) == n;
}

static nghttp2_session *session_new(struct h2 *h)
{
    nghttp2_session_callbacks *cb;
    nghttp2_session *s;
    nghttp2_settings_entry max = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 100};

    nghttp2_session_callbacks_new(&cb);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_close);
    ck_assert_int_eq(nghttp2_session_server_new(&s, cb, h), 0);
    nghttp2_session_callbacks_del(cb);
    nghttp2_submit_settings(s, NGHTTP2_FLAG_NONE, &max, 1);
    return s;
}

void *provider_h2_connection(void *arg)
{
    struct h2 *h = calloc(1, sizeof(*h));
    struct fake_provider *p;

    h->c = arg;
    p = h->c->p;
    h->ssl = SSL_new(p->tls);
    SSL_set_fd(h->ssl, h->c->fd);
    if (SSL_accept(h->ssl) == 1) {
        h->s = session_new(h);
        atomic_fetch_add(&p->connections, 1);
        while (!atomic_load(&p->stop) && send_out(h) && read_in(h))
            ;
        for (int i = 0; i < h->count; i++) {
            if (!atomic_load(&p->stop))
                gone(&h->streams[i]);
            buf_free(&h->streams[i].body);
        }
        nghttp2_session_del(h->s);
    }
    atomic_store(&p->closed_ns, clock_now_ns());
    SSL_free(h->ssl);
    close(h->c->fd);
    free(h->c);
    free(h);
    atomic_fetch_sub(&p->threads, 1);
    return NULL;
}

/* --- TLS ------------------------------------------------------------------------------
 */

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *n,
                           const unsigned char *in, unsigned in_n, void *arg)
{
    (void)ssl;
    (void)arg;
    return nghttp2_select_next_protocol((unsigned char **)out, n, in, in_n) == 1
               ? SSL_TLSEXT_ERR_OK
               : SSL_TLSEXT_ERR_NOACK;
}

static X509 *self_signed(EVP_PKEY *key)
{
    X509 *x = X509_new();
    X509_NAME *name = X509_get_subject_name(x);
    X509V3_CTX v3;
    X509_EXTENSION *e;

    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -60);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                               (const unsigned char *)"127.0.0.1", -1, -1, 0);
    X509_set_issuer_name(x, name);
    X509V3_set_ctx_nodb(&v3);
    X509V3_set_ctx(&v3, x, x, NULL, NULL, 0);
    e = X509V3_EXT_conf_nid(NULL, &v3, NID_subject_alt_name, "IP:127.0.0.1");
    X509_add_ext(x, e, -1);
    X509_EXTENSION_free(e);
    ck_assert_int_gt(X509_sign(x, key, EVP_sha256()), 0);
    return x;
}

void provider_start_h2(struct fake_provider *p)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = self_signed(key);
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    int fd;
    FILE *f;

    SSL_CTX_use_certificate(ctx, x);
    SSL_CTX_use_PrivateKey(ctx, key);
    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    snprintf(p->ca_path, sizeof(p->ca_path), "/tmp/dac-test-ca-XXXXXX");
    fd = mkstemp(p->ca_path);
    ck_assert_int_ge(fd, 0);
    f = fdopen(fd, "w");
    PEM_write_X509(f, x);
    fclose(f);
    X509_free(x);
    EVP_PKEY_free(key);
    p->tls = ctx;
    make_big_answer();
    provider_start(p, NULL);
}
