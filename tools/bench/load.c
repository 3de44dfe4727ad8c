/*
 * Runs a load on one event loop and collects times. The delay of a token is measured
 * against the client that had it first, so it shows the spread that the server's fan-out
 * causes, not the provider's own jitter; no clock of another process is needed.
 */
#include "tools/bench/load.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"

/* When the text up to `mark` was first seen by anyone. */
struct first_seen {
    uint64_t mark, at_ns;
};

struct load_state {
    struct load *load;
    struct event_base *base;
    struct client *clients; /* owned */
    size_t *asked;          /* owned: per client */
    size_t opened, heads, over;
    struct first_seen *marks; /* owned */
    size_t mark_count, mark_cap;
    struct event opener;
    uint64_t started_ns;
};

static void ask(struct load_state *s, struct client *c)
{
    struct buf path = BUF_INIT(4096), body = BUF_INIT((size_t)1 << 20);

    s->load->question(s->load->arg, c->index, s->asked[c->index]++, &path, &body);
    if (!buf_cstr(&path) || !buf_cstr(&body) || path.failed || body.failed) {
        fprintf(stderr, "dac-bench: the question is too long\n");
        exit(1);
    }
    client_set_request(c, path.data, s->load->headers, body.data);
    buf_free(&path);
    buf_free(&body);
    client_ask(c);
}

static void on_head(struct client *c)
{
    struct load_state *s = c->user;
    struct load *l = s->load;

    samples_add(&l->head, c->head_ns - c->asked_ns);
    if (s->asked[c->index] == 1 && ++s->heads == l->clients && l->on_all_heads)
        l->on_all_heads(l->arg);
}

static void remember(struct load_state *s, uint64_t mark, uint64_t now_ns)
{
    if (s->mark_count == s->mark_cap) {
        size_t cap = s->mark_cap ? s->mark_cap * 2 : 1024;
        struct first_seen *m = realloc(s->marks, cap * sizeof(*m));

        if (!m) {
            fprintf(stderr, "dac-bench: out of memory\n");
            exit(1);
        }
        s->marks = m;
        s->mark_cap = cap;
    }
    s->marks[s->mark_count++] = (struct first_seen){mark, now_ns};
}

static void on_text(struct client *c, uint64_t mark, uint64_t now_ns)
{
    struct load_state *s = c->user;
    struct load *l = s->load;

    if (s->heads < l->clients)
        l->early = true;
    l->pieces++;
    if (!l->identical) {
        uint64_t k = l->token_size && mark >= l->token_size && mark % l->token_size == 0
                         ? mark / l->token_size
                         : c->text_count;
        uint64_t due = c->first_ns + (k - 1) * l->gap_ns;

        samples_add(&l->delay, now_ns > due ? now_ns - due : 0);
        return;
    }
    if (s->mark_count == 0 || mark > s->marks[s->mark_count - 1].mark) {
        remember(s, mark, now_ns);
        if (l->on_first_seen)
            l->on_first_seen(l->arg, mark);
    }
    for (; c->seen < s->mark_count && s->marks[c->seen].mark <= mark; c->seen++)
        samples_add(&l->delay, now_ns - s->marks[c->seen].at_ns);
}

static void on_end(struct client *c)
{
    struct load_state *s = c->user;
    struct load *l = s->load;

    l->bytes += c->bytes;
    /* The last mark counts bytes of text where the dialect has them. */
    l->tokens += l->token_size && c->mark > c->text_count ? c->mark / l->token_size
                                                          : c->text_count;
    if (c->ok) {
        l->answered++;
        samples_add(&l->latency, c->end_ns - c->asked_ns);
        if (c->first_ns)
            samples_add(&l->ttft, c->first_ns - c->asked_ns);
    } else {
        l->failed++;
        l->refused += c->refused;
        if (!l->first_bad_status)
            l->first_bad_status = (size_t)c->status;
    }
    if (c->ok && s->asked[c->index] < l->asks)
        ask(s, c);
    else if (++s->over == l->clients)
        event_base_loopbreak(s->base);
}

static const struct client_ops ops = {
    .on_head = on_head, .on_text = on_text, .on_end = on_end};

/* Opens those that are due; a burst is one pass. */
static void open_due(evutil_socket_t fd, short what, void *arg)
{
    struct load_state *s = arg;
    struct load *l = s->load;
    uint64_t gone = clock_now_ns() - s->started_ns;
    size_t due = l->clients;

    (void)fd;
    (void)what;
    if (gone < l->ramp_ns)
        due = (size_t)((double)l->clients * (double)gone / (double)l->ramp_ns);
    while (s->opened < due)
        ask(s, &s->clients[s->opened++]);
    if (s->opened < l->clients)
        event_add(&s->opener, &(struct timeval){.tv_usec = 1000});
}

static void stop(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    event_base_loopbreak(arg);
}

void load_run(struct load *l)
{
    struct load_state s = {.load = l, .base = event_base_new()};
    struct timeval limit = {.tv_sec = (time_t)(l->timeout_ns / NS_PER_S)};

    s.clients = calloc(l->clients, sizeof(*s.clients));
    s.asked = calloc(l->clients, sizeof(*s.asked));
    if (!s.base || !s.clients || !s.asked) {
        fprintf(stderr, "dac-bench: out of memory\n");
        exit(1);
    }
    for (size_t i = 0; i < l->clients; i++)
        client_init(&s.clients[i], s.base, l->target, &ops, &s, i);
    s.started_ns = clock_now_ns();
    event_assign(&s.opener, s.base, -1, 0, open_due, &s);
    event_active(&s.opener, EV_TIMEOUT, 0);
    event_base_once(s.base, -1, EV_TIMEOUT, stop, s.base, &limit);
    event_base_dispatch(s.base);
    l->wall_ns = clock_now_ns() - s.started_ns;
    for (size_t i = 0; i < l->clients; i++) {
        struct client *c = &s.clients[i];

        if (c->state != CLIENT_OVER) {
            l->failed++;
            l->refused += c->status == 0;
        }
        client_close(c);
    }
    event_del(&s.opener);
    event_base_free(s.base);
    free(s.clients);
    free(s.asked);
    free(s.marks);
}

void load_free(struct load *l)
{
    samples_free(&l->ttft);
    samples_free(&l->head);
    samples_free(&l->delay);
    samples_free(&l->latency);
}
