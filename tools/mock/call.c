/*
 * The life of one call: waits, sends, breaks off as its spec says. call_pump() is the
 * whole machine: it does what is due, then arms whatever ends the next wait (a timer, a
 * barrier, or room in the socket). Times are absolute, so a late timer sends what is
 * overdue at once and the stream keeps its length.
 */
#include "tools/mock/call.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/mock/render.h"

#define CUT_DELAY_H2_NS (10 * NS_PER_MS)
#define PUMP_STEPS      512 /* items sent before other calls get their turn */

static void call_pump(struct call *c);

static struct buf event_text = {.max = WIRE_OUT_MAX};
static struct buf token_text = {.max = WIRE_OUT_MAX};

/* --- endings --------------------------------------------------------------------------
 */

static void log_event(struct call *c, const char *event, int status)
{
    uint64_t now = clock_now_ns();

    journal_add(&c->mock->journal, event, c->id, now, now - c->arrived_ns, c->sent,
                status, NULL);
}

static void leave_barrier(struct call *c)
{
    if (!c->at)
        return;
    TAILQ_REMOVE(&c->at->waiting, c, wait_link);
    c->at->count--;
    c->at = NULL;
    c->mock->stats.waiting--;
}

static void call_free(struct call *c)
{
    struct mock *m = c->mock;

    leave_barrier(c);
    if (c->stalled)
        m->stats.stalled--;
    evtimer_del(&c->timer);
    evtimer_del(&c->ping);
    TAILQ_REMOVE(&m->calls, c, link);
    m->stats.active--;
    mock_changed(m);
    answer_free(&c->answer);
    spec_free(&c->spec);
    buf_free(&c->pend);
    free(c);
}

static void on_done(struct exchange *x, void *user)
{
    struct call *c = user;
    int status = c->spec.status ? (int)c->spec.status : c->spec.redirect ? 307 : 200;

    (void)x;
    c->mock->stats.completed++;
    if (status >= 300)
        c->mock->stats.failed++;
    log_event(c, "end", status);
    call_free(c);
}

static void on_gone(struct exchange *x, void *user, enum gone_how how)
{
    struct call *c = user;

    (void)x;
    c->mock->stats.client_gone++;
    if (how == GONE_RESET)
        c->mock->stats.reset++;
    else
        c->mock->stats.closed++;
    log_event(c, how == GONE_RESET ? "reset_by_client" : "closed_by_client", 0);
    call_free(c);
}

static void on_writable(struct exchange *x, void *user)
{
    (void)x;
    call_pump(user);
}

static const struct exchange_ops ops = {on_gone, on_writable, on_done};

void call_drop(struct call *c)
{
    struct exchange *x = c->x;

    call_free(c);
    exchange_abort(x, false);
}

static void call_stall(struct call *c)
{
    exchange_flush(c->x);
    if (c->stalled)
        return;
    c->stalled = true;
    c->mock->stats.stalled++;
    log_event(c, "stall", 0);
    mock_changed(c->mock);
}

/* --- sending --------------------------------------------------------------------------
 */

static void begin(struct call *c)
{
    const struct header h[] = {
        {"content-type",
         c->spec.content_type ? c->spec.content_type : "text/event-stream"},
        {"cache-control", "no-cache"},
    };

    if (!c->x->begun)
        exchange_begin(c->x, 200, h, DAC_ARRAY_LEN(h));
}

static const char *eol(const struct call *c)
{
    static const char *const ends[] = {"\n", "\r\n", "\r"};

    return ends[c->spec.eol];
}

/* Hands bytes to the exchange, or with `split` to the queue of pieces. */
static void emit(struct call *c, const void *data, size_t n)
{
    begin(c);
    if (c->spec.split)
        buf_append(&c->pend, data, n);
    else
        exchange_write(c->x, data, n);
}

static struct buf *event_open(struct call *c)
{
    buf_reset(&event_text);
    if (c->spec.comments)
        buf_printf(&event_text, ": mock comment%s%s", eol(c), eol(c));
    buf_puts(&event_text, "data: ");
    return &event_text;
}

static void event_close(struct call *c)
{
    buf_puts(&event_text, eol(c));
    buf_puts(&event_text, eol(c));
    emit(c, event_text.data, event_text.len);
}

static void send_role(struct call *c)
{
    if (c->role_sent || c->spec.role == SPEC_ROLE_NONE)
        return;
    c->role_sent = true;
    render_role(&c->answer, event_open(c));
    event_close(c);
}

static void log_first(struct call *c)
{
    if (c->first_logged)
        return;
    c->first_logged = true;
    log_event(c, "first_token", 0);
}

static bool has_item(const struct call *c)
{
    return c->reasoning_sent < c->spec.reasoning || c->sent < c->answer.tokens ||
           (c->answer.tool_calls && c->tool_sent < RENDER_TOOL_PIECES);
}

/* Sends the next reasoning, content or tool item; false if there is none left. */
static bool send_item(struct call *c)
{
    struct answer *a = &c->answer;

    buf_reset(&token_text);
    if (c->reasoning_sent < c->spec.reasoning) {
        send_role(c);
        answer_reasoning(a, c->reasoning_sent++, &token_text);
        render_delta(a, "reasoning_content", token_text.data, token_text.len,
                     event_open(c));
    } else if (c->sent < a->tokens) {
        send_role(c);
        answer_token(a, c->sent++, &token_text);
        render_delta(a, "content", token_text.data, token_text.len, event_open(c));
        c->mock->stats.tokens_sent++;
    } else if (a->tool_calls && c->tool_sent < RENDER_TOOL_PIECES) {
        send_role(c);
        render_tool(a, c->tool_sent++, event_open(c));
    } else {
        return false;
    }
    event_close(c);
    log_first(c);
    return true;
}

static bool wants_usage(const struct call *c)
{
    if (c->spec.usage == SPEC_USAGE_ASKED)
        return c->include_usage;
    return c->spec.usage == SPEC_USAGE_ALWAYS;
}

static void send_closing(struct call *c)
{
    c->closing = true;
    begin(c);
    if (!c->spec.empty) {
        send_role(c);
        if (!c->spec.no_finish) {
            render_finish(&c->answer, event_open(c));
            event_close(c);
        }
        if (wants_usage(c)) {
            render_usage(&c->answer, event_open(c));
            event_close(c);
        }
    }
    if (!c->spec.no_done) {
        buf_puts(event_open(c), "[DONE]");
        event_close(c);
    }
}

static void send_junk(struct call *c)
{
    static const char data[] =
        "data: {\"choices\":[{\"delta\":{\"content\":\"\xff\xfe\x01\n\n";
    static const char line[] = "\x01\x02\xff\xfe no field here \xc3\x28\n\n";
    static const char raw[] = "\x16\x03\x7f\xff not a chunk \xff\xff\r\n\r\n";

    c->junk_sent = true;
    switch (c->spec.junk_kind) {
    case SPEC_JUNK_DATA:
        emit(c, data, sizeof(data) - 1);
        break;
    case SPEC_JUNK_LINE:
        emit(c, line, sizeof(line) - 1);
        break;
    default:
        begin(c);
        exchange_write_raw(c->x, raw, sizeof(raw) - 1);
        break;
    }
}

static void send_error_event(struct call *c)
{
    c->closing = true;
    buf_puts(event_open(c),
             c->spec.body
                 ? c->spec.body
                 : "{\"error\":{\"message\":\"mock error event\","
                   "\"type\":\"server_error\",\"param\":null,\"code\":\"mock_error\"}}");
    event_close(c);
}

/* --- answers that are no stream --------------------------------------------------------
 */

static bool is_whole(const struct call *c)
{
    return c->spec.status || c->spec.redirect || c->spec.wrong_type ||
           (!c->stream && !c->spec.empty);
}

static const char *error_type(uint64_t status)
{
    switch (status) {
    case 400:
    case 404:
    case 413:
    case 422:
        return "invalid_request_error";
    case 401:
    case 403:
        return "authentication_error";
    case 429:
        return "rate_limit_error";
    default:
        return "server_error";
    }
}

static void respond_whole(struct call *c)
{
    struct spec *s = &c->spec;
    uint64_t status = s->status ? s->status : s->redirect ? 307 : 200;
    const struct header h[] = {
        {"content-type", s->content_type ? s->content_type
                         : s->wrong_type ? "text/html; charset=utf-8"
                                         : "application/json"},
        {"retry-after", s->retry_after},
        {"location", s->redirect},
    };
    struct buf *b = &event_text;

    buf_reset(b);
    if (s->body)
        buf_puts(b, s->body);
    else if (s->wrong_type)
        buf_puts(b, "<!doctype html><title>mock</title><p>This is no event stream.\n");
    else if (status >= 300)
        buf_printf(b,
                   "{\"error\":{\"message\":\"mock status %d\",\"type\":\"%s\","
                   "\"param\":null,\"code\":\"mock_%d\"}}\n",
                   (int)status, error_type(status), (int)status);
    else {
        render_completion(&c->answer, c->id, b);
        c->sent = c->answer.tokens;
        c->mock->stats.tokens_sent += c->sent;
        log_first(c);
    }
    exchange_respond(c->x, (int)status, h, DAC_ARRAY_LEN(h), b->len ? b->data : "",
                     b->len);
}

/* --- waiting ---------------------------------------------------------------------------
 */

static void arm(struct event *ev, uint64_t wait_ns)
{
    struct timeval tv = {.tv_sec = (time_t)(wait_ns / NS_PER_S),
                         .tv_usec = (suseconds_t)(wait_ns % NS_PER_S / NS_PER_US)};

    evtimer_add(ev, &tv);
}

/* True when `due_ns` has come; else the timer is armed for it. */
static bool is_due(struct call *c, uint64_t due_ns)
{
    uint64_t now = due_ns ? clock_now_ns() : 0;

    if (now >= due_ns)
        return true;
    exchange_flush(c->x);
    arm(&c->timer, due_ns - now);
    return false;
}

/* True when no barrier stands before the next token. */
static bool passes_barriers(struct call *c)
{
    for (size_t i = 0; i < c->spec.barrier_count; i++) {
        const struct spec_barrier *s = &c->spec.barriers[i];
        uint64_t at = s->at == SPEC_NEVER ? c->spec.barrier_at : s->at;
        struct barrier *b;

        if (c->passed[i] || (at != c->sent && !is_whole(c)))
            continue;
        b = barrier_get(c->mock, s->name);
        if (b && !barrier_try(b)) {
            exchange_flush(c->x);
            c->at = b;
            TAILQ_INSERT_TAIL(&b->waiting, c, wait_link);
            b->count++;
            c->mock->stats.waiting++;
            log_event(c, "waiting", 0);
            mock_changed(c->mock);
            return false;
        }
        c->passed[i] = true;
    }
    return true;
}

void call_pass(struct call *c)
{
    struct barrier *at = c->at;

    leave_barrier(c);
    for (size_t i = 0; i < c->spec.barrier_count; i++) {
        if (!c->passed[i] && strcmp(c->spec.barriers[i].name, at->name) == 0) {
            c->passed[i] = true;
            break;
        }
    }
    /* What was due while it waited does not come in a burst. */
    if (c->due_ns < clock_now_ns())
        c->due_ns = clock_now_ns();
    mock_changed(c->mock);
    arm(&c->timer, 0);
}

/* Sends queued pieces; false while some must wait. */
static bool drain_pieces(struct call *c)
{
    while (c->pend_off < c->pend.len) {
        size_t n = c->pend.len - c->pend_off;

        if (!is_due(c, c->split_due_ns))
            return false;
        if (n > c->spec.split)
            n = c->spec.split;
        exchange_write(c->x, c->pend.data + c->pend_off, n);
        exchange_flush(c->x);
        c->pend_off += n;
        if (c->spec.split_gap)
            c->split_due_ns = clock_now_ns() + c->spec.split_gap;
    }
    buf_reset(&c->pend);
    c->pend_off = 0;
    return true;
}

static bool has_room(struct call *c)
{
    if (exchange_unsent(c->x) < WIRE_UNSENT_HIGH)
        return true;
    exchange_flush(c->x);
    if (exchange_unsent(c->x) < WIRE_UNSENT_HIGH)
        return true;
    c->x->want_writable = true;
    return false;
}

/* --- the machine -----------------------------------------------------------------------
 */

enum step { STEP_ON, STEP_WAIT, STEP_OVER };

/* Breaks off. Clients on HTTP/2 tend to drop what they read together with a reset, so
 * there it comes a little behind the last token. */
static enum step call_cut(struct call *c)
{
    struct exchange *x = c->x;
    uint64_t delay = c->spec.cut_delay;
    bool tcp_reset;

    if (!spec_names(&c->spec, "cut_delay") && x->begun && x->stream_id)
        delay = CUT_DELAY_H2_NS;
    if (delay && !c->cut_due_ns)
        c->cut_due_ns = clock_now_ns() + delay;
    if (!is_due(c, c->cut_due_ns))
        return STEP_WAIT;
    exchange_flush(x);
    tcp_reset = c->spec.cut_mode == SPEC_CUT_RST;
    c->mock->stats.cut++;
    log_event(c, "cut", 0);
    call_free(c);
    exchange_abort(x, tcp_reset);
    return STEP_OVER;
}

/* What the spec has go wrong at this count of tokens. */
static enum step faults(struct call *c)
{
    const struct spec *s = &c->spec;

    if (c->reasoning_sent < s->reasoning)
        return STEP_ON;
    if (s->junk == c->sent && !c->junk_sent)
        send_junk(c);
    if (s->error_event == c->sent) {
        send_error_event(c);
        return STEP_ON;
    }
    if (!drain_pieces(c))
        return STEP_WAIT;
    if (s->stall == c->sent) {
        call_stall(c);
        return STEP_WAIT;
    }
    return s->cut == c->sent ? call_cut(c) : STEP_ON;
}

/* An answer in one piece: waits as long as its stream would have run. */
static void pump_whole(struct call *c)
{
    if (!is_due(c, c->due_ns) || !passes_barriers(c))
        return;
    if (c->spec.stall != SPEC_NEVER)
        call_stall(c);
    else if (c->spec.cut != SPEC_NEVER)
        call_cut(c);
    else
        respond_whole(c);
}

static enum step pump_step(struct call *c)
{
    bool first = c->sent == 0 && c->reasoning_sent == 0 && c->tool_sent == 0;
    enum step step;

    if (!drain_pieces(c) || !has_room(c))
        return STEP_WAIT;
    if (c->closing) {
        if (c->spec.hold) {
            call_stall(c);
            return STEP_WAIT;
        }
        exchange_end(c->x);
        return STEP_OVER;
    }
    if (first && (!is_due(c, c->due_ns) || !passes_barriers(c)))
        return STEP_WAIT;
    step = faults(c);
    if (step != STEP_ON || c->closing)
        return step;
    if (!first && ((has_item(c) && !is_due(c, c->due_ns)) || !passes_barriers(c)))
        return STEP_WAIT;
    if (c->spec.empty || !send_item(c))
        send_closing(c);
    else if (c->spec.gap)
        c->due_ns += c->spec.gap;
    return STEP_ON;
}

static void call_pump(struct call *c)
{
    if (c->at || c->stalled)
        return;
    if (is_whole(c)) {
        pump_whole(c);
        return;
    }
    for (int i = 0; i < PUMP_STEPS; i++) {
        if (pump_step(c) != STEP_ON)
            return;
    }
    exchange_flush(c->x);
    arm(&c->timer, 0);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    call_pump(arg);
}

static void on_ping(evutil_socket_t fd, short what, void *arg)
{
    struct call *c = arg;

    (void)fd;
    (void)what;
    if (c->x->begun && !c->x->ended && c->pend_off == c->pend.len) {
        buf_reset(&event_text);
        buf_printf(&event_text, ": ping%s%s", eol(c), eol(c));
        exchange_write(c->x, event_text.data, event_text.len);
        exchange_flush(c->x);
    }
    arm(&c->ping, c->spec.ping);
}

void call_start(struct call *c)
{
    struct mock *m = c->mock;
    const struct spec *s = &c->spec;

    c->pend = BUF_INIT(WIRE_OUT_MAX);
    evtimer_assign(&c->timer, m->base, on_timer, c);
    evtimer_assign(&c->ping, m->base, on_ping, c);
    c->due_ns = s->ttft || s->gap || s->split_gap ? c->arrived_ns + s->ttft : 0;
    c->x->ops = &ops;
    c->x->user = c;
    if (s->close)
        c->x->conn->keep_alive = false;
    if (is_whole(c)) {
        if (!s->status && !s->redirect && !s->wrong_type && c->answer.tokens > 1)
            c->due_ns += s->gap * (c->answer.tokens - 1);
    } else {
        render_prefix(&c->answer, c->id);
        if (s->headers == SPEC_HEADERS_EARLY)
            begin(c);
        if (s->role == SPEC_ROLE_EARLY)
            send_role(c);
        if (s->ping)
            arm(&c->ping, s->ping);
    }
    call_pump(c);
}
