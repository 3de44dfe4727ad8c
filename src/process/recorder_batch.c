/*
 * Stores ended flights. All that waits when a commit returned is the next batch, up to
 * BATCH_MAX flights or BATCH_BYTES of logs, or less where the store is slow: nothing
 * waits in order to be batched.
 *
 *   choose -> rows (threads first, then by age), final numbers -> store_write()
 *         ... the loop goes on; what ends meanwhile waits for the next batch ...
 *         -> committed -> per flight: sample, `stored` (release), wake its readers
 *         -> the next batch, if something waits; the store's upkeep beside it
 *
 * The order of the last line is a promise: whoever reads `stored` finds the sample, and
 * what it says is durable. A row that the store refuses for its data fails alone;
 * anything else fails the batch, and it is made anew after a growing delay. The flights
 * of a batch stay the first ones of `pending` while it runs, its numbers those of
 * `counts`. Recorder only.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "flight/result.h"
#include "process/recorder_state.h"
#include "shm/crash.h"
#include "shm/index.h"
#include "shm/sample.h"
#include "shm/slot.h"
#include "shm/wake.h"
#include "store/rejected.h"

#define BATCH_MAX      256
#define BATCH_COUNTS   256
#define BATCH_BYTES    (UINT64_C(16) << 20)
#define BATCH_IN_HAND  1u /* of a flight's word `batch` */
#define DEATHS_ASIDE   2u /* recorders that a flight may take with it: then set aside, */
#define DEATHS_BARE    3u /* without its content if that was too much, too, */
#define DEATHS_LEFT    4u /* and not touched any more */
#define BACKOFF_MIN_NS (100 * NS_PER_MS)
#define BACKOFF_MAX_NS (2 * NS_PER_S)

/* What became of one flight in a batch. */
struct outcome {
    uint32_t flight;
    const struct store_row *row; /* NULL: there is nothing to store, as `why` says */
    const char *why;
    enum flight_stored stored;
    enum turn_status status; /* TURN_RUNNING: it is no turn, there is nothing to count */
    uint64_t followers;
    uint64_t hits;
    char fetcher[24]; /* "worker 2", empty: nobody */
    struct buf data;  /* owned: what is set aside */
};

/* Rows borrow their texts from `results`, which live until the batch is over. */
struct recorder_batch {
    uint64_t began_ns; /* when the store got it */
    size_t flights;
    size_t counts;
    size_t row_count;
    struct outcome outcomes[BATCH_MAX];
    struct turn_result results[BATCH_MAX]; /* one per flight, owned */
    struct store_row rows[BATCH_MAX + BATCH_COUNTS + BATCH_KEYS];
};

struct recorder_batch *recorder_batch_new(void)
{
    return calloc(1, sizeof(struct recorder_batch));
}

static void batch_clear(struct recorder_batch *b)
{
    for (size_t i = 0; i < b->flights; i++) {
        turn_result_free(&b->results[i]);
        buf_free(&b->outcomes[i].data);
    }
    b->flights = b->counts = b->row_count = 0;
}

void recorder_batch_free(struct recorder_batch *b)
{
    if (b)
        batch_clear(b);
    free(b);
}

/* --- deaths ---------------------------------------------------------------------------
 *
 * A flight may be what a recorder dies of. Which of a batch it was nobody knows, so each
 * of them is tried alone by the next recorder; the one that was in hand again is set
 * aside by the third.
 */

static uint32_t deaths_of(const struct shm_flight *f)
{
    return atomic_load_explicit(&f->batch, memory_order_relaxed) >> 1;
}

static void take_in_hand(struct shm_flight *f)
{
    atomic_fetch_or_explicit(&f->batch, BATCH_IN_HAND, memory_order_relaxed);
    CRASH_POINT("recorder_in_hand");
}

/* All of the batch, before anybody hears of it: who dies in telling did not die of them.
 */
void recorder_put_down(struct recorder *r)
{
    for (size_t i = 0; i < r->batch->flights; i++)
        atomic_fetch_and_explicit(&flight_at(r->shm, r->batch->outcomes[i].flight)->batch,
                                  ~BATCH_IN_HAND, memory_order_relaxed);
}

void recorder_count_deaths(struct recorder *r)
{
    for (uint32_t i = 0; i < r->shm->hdr->flight_count; i++) {
        struct shm_flight *f = flight_at(r->shm, i);
        uint32_t word = atomic_load_explicit(&f->batch, memory_order_relaxed);
        struct flight_about about;

        if ((word & BATCH_IN_HAND) == 0)
            continue;
        atomic_store_explicit(&f->batch, word + 1, memory_order_relaxed);
        log_info_about(recorder_about(r, i, NULL, &about), 0,
                       "flight %" PRIu32 " was in hand when a recorder died (%" PRIu32
                       ")",
                       i, (word + 1) >> 1);
    }
}

/* --- choosing -------------------------------------------------------------------------
 */

static int by_kind_and_age(const void *a, const void *b, void *arg)
{
    const struct shm *shm = arg;
    const struct shm_flight *x = flight_at(shm, *(const uint32_t *)a);
    const struct shm_flight *y = flight_at(shm, *(const uint32_t *)b);
    bool thread_x = atomic_load(&x->kind) == FLIGHT_THREAD;
    bool thread_y = atomic_load(&y->kind) == FLIGHT_THREAD;
    uint64_t seq_x = atomic_load(&x->claim_seq);
    uint64_t seq_y = atomic_load(&y->claim_seq);

    if (thread_x != thread_y)
        return thread_x ? -1 : 1;
    return (seq_x > seq_y) - (seq_x < seq_y);
}

/* How many of the pending flights make the next batch; they are the first ones then. */
static size_t choose(struct recorder *r)
{
    uint64_t bytes = 0;
    size_t n, rows_max, bytes_max;

    store_batch_max(r->store, &rows_max, &bytes_max);
    if (rows_max > BATCH_MAX)
        rows_max = BATCH_MAX;
    if (bytes_max > BATCH_BYTES)
        bytes_max = BATCH_BYTES;
    qsort_r(r->pending, r->pending_count, sizeof(*r->pending), by_kind_and_age, r->shm);
    for (n = 0; n < r->pending_count && n < rows_max; n++) {
        const struct shm_flight *f = flight_at(r->shm, r->pending[n]);
        bool alone = deaths_of(f) > 0;

        bytes += atomic_load(&f->tail);
        if (n > 0 && (alone || bytes > bytes_max))
            break;
        if (alone)
            return 1;
    }
    return n;
}

/* --- one flight -----------------------------------------------------------------------
 */

static const char *text_or_null(const char *s)
{
    return s[0] ? s : NULL;
}

static struct store_text buf_text(const struct buf *b)
{
    return (struct store_text){.s = b->len > 0 ? b->data : NULL, .n = b->len};
}

static enum turn_status status_of(const struct turn_result *res)
{
    if (!res->ended || res->end.status < TURN_COMPLETE || res->end.status > TURN_FAILED)
        return TURN_INCOMPLETE;
    return (enum turn_status)res->end.status;
}

static void name_fetcher(const struct shm_flight *f, char *out, size_t n)
{
    uint32_t ordinal_1 = atomic_load(&f->fetcher);

    out[0] = '\0';
    if (ordinal_1 != 0)
        snprintf(out, n, "worker %" PRIu32, ordinal_1 - 1);
}

static void fill_turn(struct recorder *r, const struct turn_result *res,
                      const struct outcome *o, struct store_turn *turn)
{
    const struct shm_flight *f = flight_at(r->shm, o->flight);
    const struct turn_timing t = turn_timing(r->shm, o->flight);
    int64_t ended_ago_us =
        (int64_t)((clock_now_ns() - atomic_load(&f->ended_ns)) / NS_PER_US);

    *turn = (struct store_turn){
        .org = res->request.org,
        .thread_id = res->request.thread_id,
        .provider = res->request.provider,
        .model = res->request.model,
        .status = turn_status_name(o->status),
        .finish_reason = text_or_null(res->end.finish_reason),
        .error_code = text_or_null(res->end.code),
        .ttft_ms = t.ttft_ms,
        .latency_ms = t.latency_ms,
        .queue_wait_ms = t.queue_wait_ms,
        .prompt_tokens = res->usage.prompt_tokens,
        .completion_tokens = res->usage.completion_tokens,
        .followers = (int64_t)o->followers,
        .hits = (int64_t)o->hits,
        .generation = res->generation,
        .fetcher = text_or_null(o->fetcher),
        .created_us = f->created_us,
        .finished_us = clock_wall_us() - ended_ago_us,
        .user_message_id = res->request.user_message_id,
        .user_content = {.s = res->request.content.data ? res->request.content.data : "",
                         .n = res->request.content.len},
        .assistant_message_id = res->request.assistant_message_id,
        .assistant_content = buf_text(&res->text),
        .citations = buf_text(&res->citations),
        .tool_calls = buf_text(&res->tools),
    };
    memcpy(turn->id.b, f->turn_id, sizeof(turn->id.b));
    memcpy(turn->key_digest, f->key, sizeof(turn->key_digest));
    if (o->status == TURN_COMPLETE && !turn->assistant_content.s)
        turn->assistant_content.s = ""; /* an answer of no text is one nevertheless */
}

static void fill_thread(const struct thread_request *t, int64_t at_us,
                        struct store_row *row)
{
    const struct store_text title = {.s = t->title.data, .n = t->title.len};

    if (t->op == THREAD_CREATE) {
        row->kind = STORE_THREAD;
        row->u.thread = (struct store_thread){.id = t->thread_id,
                                              .org = t->org,
                                              .title = title,
                                              .created_us = t->created_us};
        return;
    }
    row->kind = t->op == THREAD_TITLE ? STORE_TITLE : STORE_DELETE;
    row->u.change = (struct store_change){
        .thread = t->thread_id, .org = t->org, .title = title, .at_us = at_us};
}

/* The row of what was read; o->row stays NULL if nobody asked anything. */
static void fill_row(struct recorder *r, const struct turn_result *res, struct outcome *o,
                     struct store_row *row)
{
    const struct shm_flight *f = flight_at(r->shm, o->flight);
    bool thread = atomic_load(&f->kind) == FLIGHT_THREAD;

    memset(row, 0, sizeof(*row));
    if (thread && res->has_thread && res->ended && res->end.status == TURN_COMPLETE) {
        fill_thread(&res->thread, f->created_us, row);
    } else if (!thread && res->has_request) {
        row->kind = STORE_TURN;
        o->status = status_of(res);
        name_fetcher(f, o->fetcher, sizeof(o->fetcher));
        fill_turn(r, res, o, &row->u.turn);
    } else {
        return;
    }
    o->row = row;
}

/* What is left of a flight that may not be read again. */
static void make_bare_row(const struct shm_flight *f, struct store_row *row)
{
    bool thread = atomic_load(&f->kind) == FLIGHT_THREAD;

    *row = (struct store_row){
        .kind = STORE_REJECTED,
        .u.rejected = {.kind = thread ? "thread" : "turn", .at_us = clock_wall_us()}};
    memcpy(row->u.rejected.id.b, f->turn_id, sizeof(row->u.rejected.id.b));
}

/* The row to be set aside instead of `row`, which is none yet if nothing was read. */
static void set_aside(struct outcome *o, const struct shm_flight *f,
                      struct store_row *row)
{
    static const char why[] = "it was in hand when the recorder died, twice";
    const struct buf data = BUF_INIT(REJECTED_DATA_MAX);
    struct store_row aside;

    o->why = "the recorder died twice with it in hand; it is in table rejected";
    if (o->row) {
        o->data = data;
        rejected_make(row, why, &o->data, &aside);
    } else {
        make_bare_row(f, &aside);
    }
    aside.u.rejected.reason = why;
    *row = aside;
    o->row = row;
}

/* Makes the row of one flight. Other than DAC_OK: no batch can be made now. */
static enum dac_err add_flight(struct recorder *r, uint32_t flight)
{
    struct recorder_batch *b = r->batch;
    struct shm_flight *f = flight_at(r->shm, flight);
    struct flight_ref ref = {.index = flight,
                             .incarnation = flight_load(r->shm, flight).incarnation};
    struct turn_result *res = &b->results[b->flights];
    struct outcome *o = &b->outcomes[b->flights++];
    struct store_row *row = &b->rows[b->row_count];
    uint32_t deaths = deaths_of(f);
    enum dac_err e;

    take_in_hand(f);
    memset(res, 0, sizeof(*res));
    *o = (struct outcome){.flight = flight,
                          .stored = STORED_FAILED,
                          .followers = atomic_load(&f->followers),
                          .hits = atomic_load(&f->hits)};
    if (deaths >= DEATHS_LEFT) {
        o->why = "recorders die of it";
        return DAC_OK;
    }
    if (deaths >= DEATHS_BARE) {
        set_aside(o, f, row);
        b->row_count++;
        return DAC_OK;
    }
    e = turn_result_read(r->shm, ref, res);
    CRASH_POINT_FOR("recorder_flight_read", res->has_request ? res->request.model : NULL);
    if (e == DAC_E_CORRUPT || e == DAC_E_TOO_LARGE) {
        o->why = e == DAC_E_CORRUPT ? "its log is damaged" : "it is too large";
        return DAC_OK;
    }
    if (e != DAC_OK)
        return e;
    fill_row(r, res, o, row);
    if (!o->row)
        return DAC_OK;
    if (deaths >= DEATHS_ASIDE)
        set_aside(o, f, row);
    else
        CRASH_POINT_FOR("recorder_row_made",
                        row->kind == STORE_TURN ? row->u.turn.model : NULL);
    b->row_count++;
    return DAC_OK;
}

/* Keys go behind all turns. */
static enum dac_err add_keys(struct recorder *r)
{
    struct recorder_batch *b = r->batch;
    size_t late;

    for (size_t i = 0; i < b->flights; i++) {
        const struct outcome *o = &b->outcomes[i];

        if (o->row && o->row->kind == STORE_TURN && o->status != TURN_FAILED)
            b->row_count += recorder_keys_add(r, o->flight, o->row->u.turn.org,
                                              &b->rows[b->row_count]);
    }
    enum dac_err e = recorder_keys_add_late(r, &b->rows[b->row_count], &late);
    b->row_count += late;
    return e;
}

static void add_counts(struct recorder *r)
{
    struct recorder_batch *b = r->batch;
    size_t max, bytes;

    store_batch_max(r->store, &max, &bytes);
    if (max > BATCH_COUNTS)
        max = BATCH_COUNTS;
    for (; b->counts < r->count_count && b->counts < max; b->counts++) {
        const struct count_update *c = &r->counts[b->counts];
        struct store_row *row = &b->rows[b->row_count++];

        row->kind = STORE_COUNTS;
        row->u.counts = (struct store_counts){.turn = c->turn,
                                              .followers = (int64_t)c->followers,
                                              .hits = (int64_t)c->hits};
    }
}

/* --- a batch --------------------------------------------------------------------------
 */

static uint32_t to_us(double ms)
{
    if (ms < 0)
        return 0;
    return ms * 1000 > UINT32_MAX - 1 ? UINT32_MAX - 1 : (uint32_t)(ms * 1000);
}

static uint32_t us_or_none(double ms)
{
    return ms < 0 ? UINT32_MAX : to_us(ms);
}

static void take_sample(struct recorder *r, const struct outcome *o)
{
    struct shm_flight *f = flight_at(r->shm, o->flight);
    const struct turn_timing t = turn_timing(r->shm, o->flight);
    struct sample s = {.ended_ns = atomic_load(&f->ended_ns),
                       .question = atomic_load(&f->question),
                       .ttft_us = us_or_none(t.ttft_ms),
                       .latency_us = to_us(t.latency_ms),
                       .queue_us = to_us(t.queue_wait_ms),
                       .own_us = to_us(t.own_ms),
                       .call_us = us_or_none(t.call_ms),
                       .call_ttft_us = us_or_none(t.call_ttft_ms),
                       .provider = atomic_load(&f->provider),
                       .status = o->status,
                       .followers = (uint32_t)o->followers,
                       .hits = (uint32_t)o->hits};

    struct flight_ref ref = {.index = o->flight,
                             .incarnation = flight_load(r->shm, o->flight).incarnation};

    memcpy(s.turn, f->turn_id, sizeof(s.turn));
    /* Where the lock is not to be had the numbers are those of a moment ago. */
    if (index_put_sample(r->shm, ref, &s) != DAC_OK && atomic_load(&f->sample) == 0)
        sample_add(r->shm, &s, &f->sample);
}

static void count_turn(struct recorder *r, const struct outcome *o)
{
    static const enum shm_counter counters[] = {[TURN_COMPLETE] = SHM_C_turns_complete,
                                                [TURN_CANCELLED] = SHM_C_turns_cancelled,
                                                [TURN_INCOMPLETE] =
                                                    SHM_C_turns_incomplete,
                                                [TURN_FAILED] = SHM_C_turns_failed};

    shm_count(r->shm,
              o->stored == STORED_FAILED ? SHM_C_turns_unstored : counters[o->status], 1);
}

/* After the commit: tells the world. */
static void publish(struct recorder *r, const struct outcome *o)
{
    struct shm_flight *f = flight_at(r->shm, o->flight);
    struct flight_note *note = &r->notes[o->flight];

    if (o->status != TURN_RUNNING) {
        take_sample(r, o);
        count_turn(r, o);
    }
    *note =
        (struct flight_note){.incarnation = flight_load(r->shm, o->flight).incarnation,
                             .counted = true,
                             .followers = o->followers,
                             .hits = o->hits};
    if (o->stored == STORED_FAILED || o->status == TURN_FAILED)
        recorder_keys_dismiss(r, o->flight);
    CRASH_POINT("recorder_before_stored");
    atomic_store_explicit(&f->stored, o->stored, memory_order_release);
    wake_readers(r->shm, o->flight);
}

static void batch_lost(struct recorder *r, const char *why)
{
    if (!r->failing)
        log_error(0, "could not store %zu flights: %s; trying again until it works",
                  r->pending_count, why);
    r->failing = true;
    r->backoff_ns = r->backoff_ns == 0 ? BACKOFF_MIN_NS : r->backoff_ns * 2;
    if (r->backoff_ns > BACKOFF_MAX_NS)
        r->backoff_ns = BACKOFF_MAX_NS;
    r->retry_at_ns = clock_now_ns() + r->backoff_ns;
    recorder_put_down(r);
    recorder_keys_forget(r);
    batch_clear(r->batch);
}

/* What the store has said about one flight, before the world hears it. */
static void settle(const struct recorder *r, size_t i)
{
    const struct turn_result *result = &r->batch->results[i];
    const char *org = result->has_request ? result->request.org : NULL;
    struct outcome *o = &r->batch->outcomes[i];
    struct flight_about about;
    bool ok = o->row && o->row->result == DAC_OK;
    const char *why = o->row && !ok ? o->row->why : o->why;

    /* One that was to be set aside may have been committed before the recorder died. */
    if (ok && o->row->kind == STORE_REJECTED && o->row->u.rejected.was_stored)
        why = NULL;
    else if (o->row && o->row->kind == STORE_REJECTED)
        ok = false;
    if (ok)
        o->stored = turn_stored_at(o->row->place);
    if (why)
        log_error_about(recorder_about(r, o->flight, org, &about), 0,
                        "flight %" PRIu32 " is not stored: %s", o->flight, why);
}

static void batch_stored(struct recorder *r)
{
    struct recorder_batch *b = r->batch;

    if (r->failing)
        log_info(0, "the store works again");
    r->failing = false;
    r->backoff_ns = 0;
    r->retry_at_ns = 0;
    for (size_t i = 0; i < b->row_count; i++)
        CRASH_POINT_FOR("recorder_row_committed",
                        b->rows[i].kind == STORE_TURN ? b->rows[i].u.turn.model : NULL);
    recorder_put_down(r);
    CRASH_POINT("recorder_put_down");
    recorder_keys_committed(r);
    r->count_count -= b->counts;
    memmove(r->counts, r->counts + b->counts, r->count_count * sizeof(*r->counts));
    r->pending_count -= b->flights;
    memmove(r->pending, r->pending + b->flights, r->pending_count * sizeof(*r->pending));
    for (size_t i = 0; i < b->flights; i++) {
        settle(r, i);
        publish(r, &b->outcomes[i]);
        recorder_look(r, b->outcomes[i].flight); /* for keys that came meanwhile */
    }
    batch_clear(b);
    recorder_tidy_soon(r);
}

/* One bucket of a histogram: what is at most that. */
struct bucket {
    enum shm_counter c;
    uint64_t most;
};

/* The largest first, so that at no moment a bucket holds more than one that contains it.
 */
static void count_in(struct recorder *r, const struct bucket *buckets, size_t n,
                     uint64_t value)
{
    while (n-- > 0 && value <= buckets[n].most)
        shm_count(r->shm, buckets[n].c, 1);
}

/* What took it from being given away to its callback, and how many rows it had. */
static void count_commit(struct recorder *r)
{
    static const struct bucket by_us[] = {
        {SHM_C_store_commits_1ms, 1000},     {SHM_C_store_commits_5ms, 5000},
        {SHM_C_store_commits_20ms, 20000},   {SHM_C_store_commits_100ms, 100000},
        {SHM_C_store_commits_500ms, 500000}, {SHM_C_store_commits_2s, 2000000}};
    static const struct bucket by_rows[] = {{SHM_C_store_commits_1_row, 1},
                                            {SHM_C_store_commits_4_rows, 4},
                                            {SHM_C_store_commits_16_rows, 16},
                                            {SHM_C_store_commits_64_rows, 64},
                                            {SHM_C_store_commits_256_rows, 256}};
    const struct recorder_batch *b = r->batch;
    uint64_t us = (clock_now_ns() - b->began_ns) / NS_PER_US;
    uint64_t spooled = 0;

    for (size_t i = 0; i < b->row_count; i++)
        spooled += b->rows[i].result == DAC_OK && b->rows[i].place == STORE_IN_SPOOL;
    shm_count(r->shm, SHM_C_store_commits, 1);
    count_in(r, by_us, DAC_ARRAY_LEN(by_us), us);
    count_in(r, by_rows, DAC_ARRAY_LEN(by_rows), b->row_count);
    shm_count(r->shm, SHM_C_store_commit_us, us);
    shm_count(r->shm, SHM_C_store_rows, b->row_count);
    shm_count(r->shm, SHM_C_store_spooled, spooled);
}

static void on_written(void *arg, enum dac_err e)
{
    struct recorder *r = arg;

    if (e == DAC_OK) {
        count_commit(r);
        batch_stored(r);
    } else {
        batch_lost(r, store_error(r->store));
    }
    recorder_note_store(r); /* newcomers are refused before the spool is too full */
    recorder_take_dirty(r); /* what has ended meanwhile is of the next batch */
    recorder_store(r, clock_now_ns());
    recorder_continue(r);
}

void recorder_store(struct recorder *r, uint64_t now_ns)
{
    struct recorder_batch *b = r->batch;
    enum dac_err e = DAC_OK;
    size_t n;

    if (store_busy(r->store) || !store_up(r->store) || now_ns < r->retry_at_ns ||
        !recorder_has_work(r))
        return;
    n = choose(r);
    for (size_t i = 0; i < n && e == DAC_OK; i++)
        e = add_flight(r, r->pending[i]);
    if (e == DAC_OK)
        e = add_keys(r);
    if (e != DAC_OK) {
        batch_lost(r, dac_err_text(e));
        return;
    }
    add_counts(r);
    b->began_ns = clock_now_ns();
    slot_beat(r->shm, b->began_ns);
    store_write(r->store, b->rows, b->row_count, r->ctx->config->commit_timeout_ns,
                on_written, r);
}
