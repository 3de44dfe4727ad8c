/*
 * The request of a call as a transfer of libcurl, and its removal such that the provider
 * hears of it.
 *
 * libcurl 7.88 leaves the RST_STREAM of a removed transfer in a buffer of the HTTP/2
 * connection. So a transfer that is alone on its connection closes it (FORBID_REUSE,
 * which curl ignores while others use the connection), and on a shared connection the
 * pause state of one that stays is changed and restored, which writes that buffer out.
 * Which calls share one is known by their local port, told before each request.
 *
 * Worker process, event loop thread only.
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "config.h"
#include "upstream/internal.h"

/* Read buffers live as long as the transfer. HTTP/2 hands over a whole frame at once. */
#define READ_BUFFER_H1 4096L
#define READ_BUFFER_H2 16384L
#define DNS_CACHE_S    60L
#define KEEPALIVE_S    30L
/* A connection that was closed before shows it within a round trip. */
#define RESEND_NS      (500 * NS_PER_MS)
#define SIBLINGS_TRIED 16

static struct curl_slist header_expect = {.data = (char[]){"Expect:"}};
static struct curl_slist header_accept = {.data = (char[]){"Accept: text/event-stream"},
                                          .next = &header_expect};
static struct curl_slist header_type = {
    .data = (char[]){"Content-Type: application/json"}, .next = &header_accept};

/* Before the request is sent. curl sends it again, up to five times, if a connection that
 * was used before ends without an answer: right for one that the provider had closed
 * while it was idle, but else each is one more call that nobody paced. */
static int on_connection(void *arg, char *remote_ip, char *local_ip, int remote_port,
                         int local_port)
{
    struct upstream_call *c = arg;
    uint64_t now = clock_now_ns();

    (void)local_ip;
    if (c->attempts == 0)
        c->sent_ns = now;
    else if (c->attempts > 1 || now - c->sent_ns > RESEND_NS) {
        curl_easy_setopt(c->easy, CURLOPT_FORBID_REUSE, 1L);
        return CURL_PREREQFUNC_ABORT;
    }
    /* A stream that was only refused leaves no error text. */
    if (c->attempts++ > 0)
        transfer_failed(c, c->curl_error[0] ? CURLE_RECV_ERROR : CURLE_HTTP2_STREAM);
    transfer_unlink(c);
    c->local_port = local_port;
    c->remote_port = remote_port;
    snprintf(c->remote_ip, sizeof(c->remote_ip), "%s", remote_ip ? remote_ip : "");
    c->linked = true;
    TAILQ_INSERT_TAIL(&c->u->links[local_port % UPSTREAM_LINK_BUCKETS], c, link);
    return CURL_PREREQFUNC_OK;
}

void transfer_unlink(struct upstream_call *c)
{
    if (!c->linked)
        return;
    TAILQ_REMOVE(&c->u->links[c->local_port % UPSTREAM_LINK_BUCKETS], c, link);
    c->linked = false;
}

static bool is_https(const char *url)
{
    return strncmp(url, "https:", 6) == 0;
}

static bool has_control(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 0x7f)
            return true;
    return false;
}

static enum dac_err set_headers(struct upstream_call *c)
{
    struct curl_slist *headers = &header_type;
    const char *key = c->provider->api_key;

    if (key && key[0] != '\0') {
        if (has_control(key))
            return DAC_E_INVALID;
        buf_reset(&c->auth);
        buf_puts(&c->auth, "Authorization: Bearer ");
        buf_puts(&c->auth, key);
        buf_append(&c->auth, "", 1);
        if (c->auth.failed)
            return DAC_E_NOMEM;
        c->auth_node = (struct curl_slist){.data = c->auth.data, .next = headers};
        headers = &c->auth_node;
    }
    if (c->trace[0] != '\0') {
        c->trace_node = (struct curl_slist){.data = c->trace, .next = headers};
        headers = &c->trace_node;
    }
    return curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, headers) == CURLE_OK
               ? DAC_OK
               : DAC_E_NOMEM;
}

static enum dac_err set_url(struct upstream_call *c)
{
    struct buf url = BUF_INIT(8192);
    enum dac_err e = DAC_OK;
    CURLcode r;

    buf_puts(&url, c->provider->base_url);
    buf_puts(&url, c->dialect->path);
    buf_append(&url, "", 1);
    if (url.failed || has_control(url.data)) {
        e = DAC_E_INVALID;
    } else {
        r = curl_easy_setopt(c->easy, CURLOPT_URL, url.data);
        if (r != CURLE_OK)
            e = r == CURLE_OUT_OF_MEMORY ? DAC_E_NOMEM : DAC_E_INVALID;
    }
    buf_free(&url);
    return e;
}

static long milliseconds(uint64_t ns)
{
    uint64_t ms = (ns + 999999) / 1000000;

    return ms > 86400000 ? 86400000L : (long)ms;
}

static enum dac_err set_connection(struct upstream_call *c)
{
    const struct upstream_provider *p = c->provider;
    bool h2 = p->http2 && is_https(p->base_url);
    CURL *e = c->easy;

    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L);
    curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(e, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(e, CURLOPT_TCP_KEEPIDLE, KEEPALIVE_S);
    curl_easy_setopt(e, CURLOPT_TCP_KEEPINTVL, KEEPALIVE_S);
    curl_easy_setopt(e, CURLOPT_DNS_CACHE_TIMEOUT, DNS_CACHE_S);
    curl_easy_setopt(e, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(e, CURLOPT_SSL_VERIFYHOST, 2L);
    curl_easy_setopt(e, CURLOPT_PIPEWAIT, h2 ? 1L : 0L);
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION,
                     h2 ? (long)CURL_HTTP_VERSION_2TLS : (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_BUFFERSIZE, h2 ? READ_BUFFER_H2 : READ_BUFFER_H1);
    if (p->connect_timeout_ns > 0)
        curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS,
                         milliseconds(p->connect_timeout_ns));
    if (curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https") != CURLE_OK ||
        curl_easy_setopt(e, CURLOPT_PROXY, "") != CURLE_OK ||
        curl_easy_setopt(e, CURLOPT_NOPROXY, "*") != CURLE_OK ||
        curl_easy_setopt(e, CURLOPT_USERAGENT, "dac/" DAC_VERSION) != CURLE_OK)
        return DAC_E_NOMEM;
    if (p->ca_file && p->ca_file[0] != '\0') {
        /* Else the system's roots would be trusted as well. */
        curl_easy_setopt(e, CURLOPT_CAPATH, NULL);
        if (curl_easy_setopt(e, CURLOPT_CAINFO, p->ca_file) != CURLE_OK)
            return DAC_E_NOMEM;
    }
    return DAC_OK;
}

enum dac_err transfer_prepare(struct upstream_call *c)
{
    CURL *e = c->easy;
    enum dac_err rc;

    curl_easy_setopt(e, CURLOPT_PRIVATE, c);
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, c->curl_error);
    curl_easy_setopt(e, CURLOPT_POST, 1L);
    curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->body.len);
    curl_easy_setopt(e, CURLOPT_POSTFIELDS, c->body.data);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, answer_head);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, c);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, answer_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(e, CURLOPT_PREREQFUNCTION, on_connection);
    curl_easy_setopt(e, CURLOPT_PREREQDATA, c);
    rc = set_url(c);
    if (rc == DAC_OK)
        rc = set_headers(c);
    if (rc == DAC_OK)
        rc = set_connection(c);
    return rc;
}

static bool shares_connection(const struct upstream_call *c,
                              const struct upstream_call *other)
{
    return other != c && other->in_multi && !other->over &&
           other->local_port == c->local_port && other->remote_port == c->remote_port &&
           strcmp(other->remote_ip, c->remote_ip) == 0;
}

bool transfer_pause(struct upstream_call *c, int what)
{
    CURLcode r = curl_easy_pause(c->easy, what);

    /* The latter is what it says when the socket could not be noted. */
    if (r == CURLE_OUT_OF_MEMORY || r == CURLE_ABORTED_BY_CALLBACK)
        c->u->damaged = true;
    return r == CURLE_OK;
}

/* Not of receiving: what comes in meanwhile, curl would keep, and lose at the end. */
static void change_pause_state(struct upstream_call *c)
{
    transfer_pause(c, CURLPAUSE_SEND);
    transfer_pause(c, CURLPAUSE_CONT);
}

/* Writes out what the connection of `c` holds back. One call with an answer is certain
 * to be on it; one without may have been moved to another by curl, so several are used.
 */
static void write_out(struct upstream_call *c)
{
    struct call_list *bucket = &c->u->links[c->local_port % UPSTREAM_LINK_BUCKETS];
    struct upstream_call *other;
    int tried = 0;

    TAILQ_FOREACH (other, bucket, link) {
        if (shares_connection(c, other) && other->kind != BODY_NONE) {
            change_pause_state(other);
            return;
        }
    }
    TAILQ_FOREACH (other, bucket, link) {
        if (shares_connection(c, other)) {
            change_pause_state(other);
            if (++tried == SIBLINGS_TRIED)
                return;
        }
    }
}

void transfer_remove(struct upstream_call *c)
{
    if (!c->in_multi)
        return;
    /* Deeper, so that nothing is done from within these. */
    c->u->depth++;
    if (!c->over)
        curl_easy_setopt(c->easy, CURLOPT_FORBID_REUSE, 1L);
    if (curl_multi_remove_handle(c->u->multi, c->easy) != CURLM_OK)
        c->u->damaged = true;
    c->in_multi = false;
    if (c->linked && !c->over)
        write_out(c);
    transfer_unlink(c);
    c->u->depth--;
}

/* Errors of a connection, not of one stream. */
static bool breaks_connection(CURLcode e)
{
    return e == CURLE_RECV_ERROR || e == CURLE_SEND_ERROR || e == CURLE_HTTP2 ||
           e == CURLE_PARTIAL_FILE;
}

void transfer_failed(struct upstream_call *c, CURLcode result)
{
    struct call_list *bucket = &c->u->links[c->local_port % UPSTREAM_LINK_BUCKETS];
    struct upstream_call *other;

    if (!c->linked)
        return;
    TAILQ_FOREACH (other, bucket, link) {
        if (!shares_connection(c, other))
            continue;
        if (breaks_connection(result))
            other->broken = true;
        else
            other->want_poke = true;
        call_queue(other);
    }
}

void transfer_poke(struct upstream_call *c)
{
    c->want_poke = false;
    if (!c->in_multi)
        return;
    c->u->depth++;
    change_pause_state(c);
    c->u->depth--;
}
