/*
 * Local fan-out: one cursor per flight and worker, one encode per record and dialect, one
 * send() per client (as memcached, h2o and nchan do it: what is published is shared, what
 * is per client is a position).
 *
 * A pass takes what the log has got since the last one, encodes it once for each dialect
 * that has live members, and walks the live list. A member that does not take its piece
 * whole becomes STALLED with a cursor of its own and costs the others nothing. The walk
 * yields when the budget of sends is used up and goes on at `pass_next`; whoever becomes
 * live meanwhile is put at the head, where the walk has been.
 */
#include <string.h>

#include "base/clock.h"
#include "flight/internal.h"

/* --- encoding ----------------------------------------------------------------------- */

struct encoding {
    struct local_flight *lf;
    const struct dialect *const *dialects;
    struct buf *const *bufs;
    size_t n;
    struct position *at;
    enum record_type run; /* type of the text that is being merged; 0: none */
    const uint64_t *skip; /* answer bytes that are not wanted; NULL: none */
    unsigned *content;    /* enum content */
    bool failed;          /* no memory for some of the text */
};

static void emit(struct encoding *en, enum record_type type, const void *p, size_t n)
{
    for (size_t i = 0; i < en->n; i++)
        if (en->dialects[i]->record)
            en->dialects[i]->record(&en->lf->view, type, p, n, *en->at, en->bufs[i]);
}

static void flush_text(struct encoding *en)
{
    struct buf *text = &en->lf->fl->text;
    en->failed = en->failed || text->failed;
    if (en->run != 0 && text->len > 0)
        emit(en, en->run, text->data, text->len);
    en->run = 0;
    buf_reset(text);
}

/* How many of the n bytes at the present position a resuming client has already; never
 * cuts a character in two. */
static size_t had_already(const struct encoding *en, const char *p, size_t n)
{
    uint64_t at = en->at->text_bytes;

    if (!en->skip || *en->skip <= at)
        return 0;
    if (*en->skip - at >= n)
        return n;
    size_t drop = (size_t)(*en->skip - at);
    while (drop > 0 && ((unsigned char)p[drop] & 0xc0) == 0x80)
        drop--;
    return drop;
}

static bool is_behind_skip(const struct encoding *en)
{
    return !en->skip || en->at->text_bytes >= *en->skip;
}

static void take_text(struct encoding *en, enum record_type type, const char *p, size_t n)
{
    size_t drop = type == RECORD_DELTA ? had_already(en, p, n) : 0;

    if (type == RECORD_REASONING && !is_behind_skip(en))
        return;
    if (type == RECORD_DELTA)
        en->at->text_bytes += n;
    if (drop == n)
        return;
    if (en->run != type)
        flush_text(en);
    en->run = type;
    buf_append(&en->lf->fl->text, p + drop, n - drop);
    *en->content |= type == RECORD_DELTA ? CONTENT_ANSWER : CONTENT_REASONING;
}

static enum dac_err take_fixed(void *to, size_t size, const void *p, size_t n)
{
    if (n != size)
        return DAC_E_CORRUPT;
    memcpy(to, p, size);
    return DAC_OK;
}

/* Usage and END are facts of the flight, whoever reads them first. */
static enum dac_err take_other(struct encoding *en, enum record_type type, const void *p,
                               size_t n, bool *ended)
{
    struct turn_view *v = &en->lf->view;
    enum dac_err e = DAC_OK;

    flush_text(en);
    if (type == RECORD_USAGE) {
        e = take_fixed(&v->usage, sizeof v->usage, p, n);
    } else if (type == RECORD_END) {
        e = take_fixed(&v->end, sizeof v->end, p, n);
        v->end.finish_reason[sizeof v->end.finish_reason - 1] = '\0';
        v->end.code[sizeof v->end.code - 1] = '\0';
        v->end.message[sizeof v->end.message - 1] = '\0';
        *ended = true;
    } else if (type == RECORD_RESET) {
        en->at->text_bytes = 0;
        v->usage = (struct record_usage){-1, -1, -1};
        *en->content |= CONTENT_RESET;
        emit(en, type, p, n);
    } else if ((type == RECORD_TOOL || type == RECORD_CITATIONS) && is_behind_skip(en)) {
        *en->content |= type == RECORD_TOOL ? CONTENT_ANSWER : 0;
        emit(en, type, p, n);
    }
    return e;
}

void cursor_begin(struct local_flight *lf, struct blocklog_cursor *c, struct position *at)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    blocklog_seek(c, lf->ref, atomic_load_explicit(&f->start, memory_order_acquire));
    *at = (struct position){.generation =
                                flight_load(lf->fl->shm, lf->ref.index).generation};
    /* The word is ahead of the log until RESET is published. */
    struct blocklog_record r;
    if (blocklog_peek(lf->fl->shm, c, &r) == DAC_OK)
        at->generation = r.generation;
}

void cursor_skip_old(struct local_flight *lf, struct blocklog_cursor *c,
                     struct position *at, bool told)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    uint64_t start = atomic_load_explicit(&f->start, memory_order_acquire);

    if (c->offset >= start)
        return;
    if (told) {
        uint64_t reset =
            start - sizeof(struct record_header) - sizeof(struct record_reset);
        if (c->offset < reset)
            blocklog_seek(c, lf->ref, reset);
    } else {
        cursor_begin(lf, c, at);
    }
}

enum dac_err encode_records(struct local_flight *lf, struct blocklog_cursor *c,
                            struct position *at, const struct dialect *const *dialects,
                            struct buf *const *bufs, size_t n, const uint64_t *skip,
                            unsigned *content, bool *ended)
{
    struct flights *fl = lf->fl;
    struct encoding en = {.lf = lf,
                          .dialects = dialects,
                          .bufs = bufs,
                          .n = n,
                          .at = at,
                          .skip = skip,
                          .content = content};
    uint64_t start = c->offset;
    struct blocklog_record r;
    enum dac_err e = DAC_E_AGAIN;

    buf_reset(&fl->text);
    while (c->offset - start < PASS_BYTES && (*content & CONTENT_RESET) == 0 &&
           (e = blocklog_peek(fl->shm, c, &r)) == DAC_OK) {
        /* RESET is a pass of its own, and all content of a pass has one generation. */
        if (c->offset != start &&
            (r.type == RECORD_RESET || (*content && r.generation != at->generation)))
            break;
        void *scratch = flights_scratch(fl, r.len);
        if (!scratch)
            return DAC_E_NOMEM;
        const void *p = blocklog_payload(fl->shm, c, &r, scratch);
        if (r.generation != at->generation) {
            flush_text(&en);
            at->generation = r.generation;
        }
        if (r.type == RECORD_DELTA || r.type == RECORD_REASONING)
            take_text(&en, r.type, p, r.len);
        else if ((e = take_other(&en, r.type, p, r.len, ended)) != DAC_OK)
            return e;
        blocklog_next(fl->shm, c, &r);
    }
    flush_text(&en);
    if (en.failed)
        return DAC_E_NOMEM;
    if (c->offset != start)
        return DAC_OK;
    return e;
}

/* --- sending to one ----------------------------------------------------------------- */

void member_begin(struct member *m)
{
    char text[96];

    if (http_stream_begun(m->ex))
        return;
    member_cache_status(m, text, sizeof text);
    http_add_header(m->ex, "Cache-Status", text);
    http_add_header(m->ex, "Cache-Control", "no-cache, no-transform");
    http_add_header(m->ex, "X-Accel-Buffering", "no");
    http_add_header(m->ex, "x-dac-turn-id", m->flight->view.turn_id);
    http_stream_begin(m->ex, 200, m->dialect->content_type);
}

/* Sends one finished piece. AGAIN still means that the member has it: what is left waits
 * in its connection. */
static enum dac_err send_piece(struct member *m, const struct http_piece *piece)
{
    struct flights *fl = m->flight->fl;
    if (piece->payload_len == 0)
        return DAC_OK;
    m->last_sent_ns = fl->pass_now_ns;
    shm_count(fl->shm, SHM_C_deliveries, 1);
    return http_stream_send(m->ex, piece);
}

bool member_send(struct member *m, struct buf *encoded)
{
    struct http_piece piece;

    m->flight->fl->pass_now_ns = clock_now_ns();
    if (http_piece_end(encoded, &piece) != DAC_OK) {
        /* No memory for its piece: it must not miss a byte silently. */
        http_abort(m->ex);
        m->ex = NULL;
        return false;
    }
    return send_piece(m, &piece) == DAC_OK;
}

/* --- the pass ----------------------------------------------------------------------- */

/* Reads on and encodes for every dialect that is listened to. */
static enum dac_err pass_begin(struct local_flight *lf)
{
    const struct dialect *dialects[DIALECTS_MAX];
    struct buf *bufs[DIALECTS_MAX];
    struct encoder *encoders[DIALECTS_MAX];
    size_t n = 0;
    bool ended = false;
    unsigned content = 0;

    for (size_t i = 0; i < DIALECTS_MAX; i++) {
        struct encoder *enc = &lf->encoders[i];
        if (enc->live == 0)
            continue;
        piece_begin(&enc->buf);
        encoders[n] = enc;
        dialects[n] = enc->dialect;
        bufs[n++] = &enc->buf;
    }
    cursor_skip_old(lf, &lf->cursor, &lf->at, !TAILQ_EMPTY(&lf->live));
    lf->pass_at = lf->at;
    enum dac_err e = encode_records(lf, &lf->cursor, &lf->at, dialects, bufs, n, NULL,
                                    &content, &ended);
    if (e != DAC_OK)
        return e;
    lf->pass_at.generation = lf->at.generation;
    for (size_t i = 0; i < n; i++)
        if (http_piece_end(&encoders[i]->buf, &encoders[i]->piece) != DAC_OK)
            return DAC_E_NOMEM;
    lf->pass_content = content;
    lf->pass_ended = ended;
    lf->pass_next = TAILQ_FIRST(&lf->live);
    lf->fl->pass_now_ns = clock_now_ns();
    return DAC_OK;
}

/* The first content: what is this member's own goes before, in the same send. */
static enum dac_err send_first(struct member *m, const struct encoder *enc)
{
    struct local_flight *lf = m->flight;
    struct buf *b = &lf->fl->piece;
    struct http_piece piece;

    m->first_sent = true;
    m->first_ns = lf->fl->pass_now_ns;
    if (!m->dialect->first)
        return send_piece(m, &enc->piece);
    lf->view.timing = turn_timing(lf->fl->shm, lf->ref.index);
    piece_begin(b);
    m->dialect->first(&lf->view, m, lf->pass_at, b);
    buf_append(b, enc->piece.payload, enc->piece.payload_len);
    if (http_piece_end(b, &piece) != DAC_OK)
        return DAC_E_NOMEM;
    return send_piece(m, &piece);
}

static const struct encoder *live_encoder(const struct local_flight *lf,
                                          const struct dialect *d)
{
    for (size_t i = 0; i < DIALECTS_MAX; i++)
        if (lf->encoders[i].live > 0 && lf->encoders[i].dialect == d)
            return &lf->encoders[i];
    return NULL;
}

static void send_to(struct member *m)
{
    struct local_flight *lf = m->flight;
    const struct encoder *enc = live_encoder(lf, m->dialect);
    enum dac_err e;

    DAC_ASSERT(enc);
    if (first_is_due(m, lf->pass_content))
        e = send_first(m, enc);
    else
        e = send_piece(m, &enc->piece);
    if (e == DAC_OK)
        return;
    m->cursor = lf->cursor;
    m->at = lf->at;
    if (e != DAC_E_NOMEM) {
        member_set_state(m, MEMBER_STALLED);
        return;
    }
    http_abort(m->ex);
    m->ex = NULL;
    member_set_state(m, MEMBER_LAGGING);
}

/* The members to come, their exchanges and connections lie anywhere in memory, and the
 * kernel's part of a send() drives them out of the cache: so each is asked for a few
 * sends before its turn, one step of the chain of pointers at a time. */
static void expect(const struct member *m)
{
    const struct member *second, *third;

    if (!m)
        return;
    if (m->ex)
        http_stream_expect_next(m->ex);
    second = TAILQ_NEXT(m, link);
    if (!second)
        return;
    if (second->ex)
        http_stream_expect(second->ex);
    third = TAILQ_NEXT(second, link);
    if (!third)
        return;
    __builtin_prefetch(third);
    __builtin_prefetch((const char *)third + 64);
}

/* Walks on; false: the budget is used up. */
static bool pass_walk(struct local_flight *lf, int *budget)
{
    struct member *m;

    while ((m = lf->pass_next) != NULL) {
        if (*budget <= 0)
            return false;
        lf->pass_next = TAILQ_NEXT(m, link);
        expect(lf->pass_next);
        send_to(m);
        (*budget)--;
    }
    return true;
}

/* A stream that can't begin anew ends with an error once it has something of the old
 * generation. */
static void break_those_who_cannot_reset(struct local_flight *lf)
{
    struct member *m, *next;

    for (m = TAILQ_FIRST(&lf->live); m; m = next) {
        next = TAILQ_NEXT(m, link);
        if (m->dialect->can_reset || !m->first_sent)
            continue;
        m->broken = true;
        member_set_state(m, MEMBER_ENDING);
    }
}

/* Everyone who was live has everything: with END they all go on to their own endings. */
static void pass_over(struct local_flight *lf)
{
    struct member *m;

    if (lf->pass_content & CONTENT_RESET) {
        lf->content_seen = false;
        break_those_who_cannot_reset(lf);
    } else if (lf->pass_content != 0) {
        lf->content_seen = true;
    }
    lf->pass_content = 0;
    if (!lf->pass_ended)
        return;
    lf->pass_ended = false;
    lf->end_seen = true;
    while ((m = TAILQ_FIRST(&lf->live)) != NULL) {
        m->cursor = lf->cursor;
        m->at = lf->at;
        member_set_state(m, MEMBER_ENDING);
    }
}

/* What is in the log is about to be void: its fetcher died, and either somebody begins
 * anew, or it ends as it is. Whoever has heard nothing yet, and could not be told to
 * forget it, waits to see which. */
static bool may_be_reset(const struct local_flight *lf)
{
    struct flight_word w = flight_load(lf->fl->shm, lf->ref.index);

    return lf->content_seen && !lf->end_seen &&
           (w.state == FLIGHT_ORPHANED ||
            (flight_state_running(w.state) && w.generation > lf->at.generation));
}

/* Members that have cursors of their own, or wait. Whoever waits for a whole answer has
 * no use for a part of it. */
static bool others_run(struct local_flight *lf, int *budget)
{
    struct member *m, *next;
    bool all = true;
    bool hold = may_be_reset(lf);

    if (lf->content_seen || lf->end_seen)
        for (m = TAILQ_FIRST(&lf->waiting); m; m = next) {
            if (!lf->end_seen && !m->dialect->stream)
                break;
            next = TAILQ_NEXT(m, link);
            if (!hold || m->dialect->can_reset)
                all = lag_run(m, budget) && all;
        }
    for (m = TAILQ_FIRST(&lf->lagging); m; m = next) {
        next = TAILQ_NEXT(m, link);
        all = lag_run(m, budget) && all;
    }
    return all;
}

static void fail_all(struct local_flight *lf)
{
    struct member_list *lists[] = {&lf->live, &lf->waiting, &lf->lagging, &lf->stalled};

    lf->pass_next = NULL;
    for (size_t i = 0; i < DAC_ARRAY_LEN(lists); i++) {
        struct member *m;
        while ((m = TAILQ_FIRST(lists[i])) != NULL) {
            if (m->ex)
                http_abort(m->ex);
            member_free(m);
        }
    }
}

/* Ended, and no END where the log ends: whoever ended it found the log damaged. */
static bool has_no_end(const struct local_flight *lf)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);

    return !lf->end_seen &&
           flight_state_ended(flight_load(lf->fl->shm, lf->ref.index).state) &&
           lf->cursor.offset == atomic_load_explicit(&f->tail, memory_order_acquire);
}

bool audience_run(struct local_flight *lf, int *budget)
{
    enum dac_err e = DAC_OK;
    bool all = true;

    lf->running = true;
    while (*budget > 0 && e == DAC_OK) {
        if (!lf->pass_next && !lf->end_seen)
            e = pass_begin(lf);
        else if (!lf->pass_next)
            e = DAC_E_AGAIN;
        if (e == DAC_OK || lf->pass_next) {
            if (!pass_walk(lf, budget))
                break;
            pass_over(lf);
        }
    }
    if (e == DAC_E_AGAIN && has_no_end(lf))
        e = DAC_E_CORRUPT;
    if (e == DAC_E_CORRUPT || e == DAC_E_NOMEM) {
        const struct log_about about = local_about(lf);

        log_error_about(&about, 0,
                        "flight %u: its log could not be read: %s; its clients are cut "
                        "off",
                        lf->ref.index, dac_err_text(e));
        fail_all(lf);
    } else if (lf->pass_next || e == DAC_OK) {
        all = false;
    }
    if (!lf->pass_next)
        all = others_run(lf, budget) && all;
    if (lf->question && lf->cursor.offset > 0)
        takeover_drop_question(lf);
    takeover_try(lf);
    lf->running = false;
    return all;
}
