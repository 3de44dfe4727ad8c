/*
 * Processes in small: what a worker, the recorder and the master do on the segment,
 * without sockets, provider and store. Tests fork them, kill them and say what must hold.
 *
 * Every text record begins with the turn's id, so that whoever reads it sees at once if a
 * block was given away too early. A reader that finds anything wrong exits with
 * ACTOR_BAD.
 */
#ifndef DAC_TESTS_SHM_ACTORS_H
#define DAC_TESTS_SHM_ACTORS_H

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>

#include "shm/crash.h"
#include "tests/shm/segment_fixture.h"

#define ACTOR_BAD   3
#define ACTOR_KEYS  12u
#define ACTOR_NAMES 8u
#define TEXT_MAX    6000u
#define ACTOR_PAUSE 2 /* milliseconds that an actor waits for a wake-up */

/* How long a leader thinks between two texts, at most: with 0 most deaths are at steps on
 * shared memory, with more they are in the middle of flights. */
static uint32_t actor_pace_us;

static inline uint32_t roll(unsigned *seed, uint32_t n)
{
    return (uint32_t)rand_r(seed) % n;
}

static inline void actor_bad(const char *what, uint32_t flight)
{
    fprintf(stderr, "flight %u: %s\n", flight, what);
    _exit(ACTOR_BAD);
}

/* A child that takes `slot` and dies with the test. */
static inline pid_t fork_actor(uint32_t slot)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(0);
        segment_enter_child(&shm, slot);
        slot_enter(&shm, clock_now_ns());
        slot_set_state(&shm, SLOT_READY);
    }
    return pid;
}

static inline uint32_t new_recorder(void)
{
    uint32_t slot;

    ck_assert_int_eq(slot_take(&shm, SLOT_RECORDER, 0, &slot), DAC_OK);
    return slot;
}

/* What the master does when it has reaped a child. */
static inline struct slot_sweep bury_actor(uint32_t slot)
{
    struct slot_sweep swept = slot_sweep(&shm, slot);

    wake_kick(&shm);
    return swept;
}

/* Sleeps until this slot is woken; at most `ms`. */
static inline bool actor_sleep(int ms)
{
    struct pollfd p = {.fd = shm.eventfd[shm.self], .events = POLLIN};
    bool woken = poll(&p, 1, ms) == 1;

    wake_begin(&shm);
    wake_take_pacers(&shm);
    return woken;
}

/* --- worker ------------------------------------------------------------------------- */

static inline void put_text(struct join_result *r, unsigned *seed)
{
    static _Thread_local uint8_t text[TEXT_MAX];
    uint32_t n = 16 + roll(seed, TEXT_MAX - 16);
    const uint8_t *turn = flight_at(&shm, r->ref.index)->turn_id;

    for (uint32_t i = 0; i < n; i++)
        text[i] = turn[i % 16];
    enum dac_err e = blocklog_append(&shm, &r->writer, RECORD_DELTA, text, n);
    if (e != DAC_OK && e != DAC_E_FULL && e != DAC_E_TOO_LARGE)
        actor_bad("could not append", r->ref.index);
    wake_readers(&shm, r->ref.index);
}

static inline void must(enum dac_err e, const char *what, uint32_t flight)
{
    if (e != DAC_OK)
        actor_bad(what, flight);
}

static inline void finish(struct join_result *r, enum turn_status status)
{
    struct record_end end = {.status = (uint32_t)status};
    enum flight_state to = status == TURN_COMPLETE    ? FLIGHT_DONE
                           : status == TURN_CANCELLED ? FLIGHT_CANCELLED
                                                      : FLIGHT_FAILED;

    atomic_store(&flight_at(&shm, r->ref.index)->ended_ns, clock_now_ns());
    must(blocklog_append(&shm, &r->writer, RECORD_END, &end, sizeof(end)), "no END",
         r->ref.index);
    must(flight_advance(&shm, r->ref, to), "not ended", r->ref.index);
    wake_recorder(&shm, r->ref.index);
    wake_readers(&shm, r->ref.index);
}

static inline bool asked_to_stop(const struct join_result *r)
{
    return (atomic_load(&flight_at(&shm, r->ref.index)->requests) & FLIGHT_ASK_CANCEL) !=
           0;
}

/* A permit, or PACER_NO_PERMIT after some tries. */
static inline uint32_t wait_for_permit(const struct join_result *r)
{
    uint32_t permit;
    uint64_t wait;

    for (int i = 0; i < 20; i++) {
        if (pacer_take(&shm, 0, r->ref, clock_now_ns(), &permit, &wait) == DAC_OK)
            return permit;
        actor_sleep(ACTOR_PAUSE);
    }
    return PACER_NO_PERMIT;
}

static inline void actor_lead(struct join_result *r, unsigned *seed)
{
    uint32_t flight = r->ref.index;
    enum turn_status status = roll(seed, 4) ? TURN_COMPLETE : TURN_FAILED;
    uint32_t permit;

    must(blocklog_append(&shm, &r->writer, RECORD_REQUEST, "{}", 2), "no room", flight);
    must(flight_advance(&shm, r->ref, FLIGHT_QUEUED), "not queued", flight);
    permit = wait_for_permit(r);
    if (permit == PACER_NO_PERMIT) {
        finish(r, TURN_FAILED);
        flight_drop_reader(&shm, flight);
        return;
    }
    if (pacer_in_flight(&shm, 0) > FIXTURE_CONCURRENCY)
        actor_bad("too many calls", flight);
    must(flight_advance(&shm, r->ref, FLIGHT_FETCHING), "not fetching", flight);
    must(flight_advance(&shm, r->ref, FLIGHT_STREAMING), "not streaming", flight);
    for (uint32_t n = roll(seed, 6); n > 0 && !asked_to_stop(r); n--) {
        put_text(r, seed);
        if (actor_pace_us > 0)
            usleep(roll(seed, actor_pace_us));
    }
    if (asked_to_stop(r))
        status = TURN_CANCELLED;
    if (roll(seed, 3) == 0 && flight_drop_reader(&shm, flight) &&
        index_abandon(&shm, r->ref) == DAC_OK)
        status = TURN_CANCELLED;
    finish(r, status);
    pacer_give(&shm, 0, permit, r->ref);
    flight_drop_reader(&shm, flight);
}

/* Compares one record with the turn that it must belong to. */
static inline void check_record(const struct join_result *r,
                                const struct blocklog_cursor *c,
                                const struct blocklog_record *rec)
{
    static _Thread_local uint8_t scratch[TEXT_MAX];
    const uint8_t *turn = flight_at(&shm, r->ref.index)->turn_id;

    if (flight_load(&shm, r->ref.index).incarnation != r->ref.incarnation)
        actor_bad("recycled while it was read", r->ref.index);
    if (rec->type != RECORD_DELTA)
        return;
    const uint8_t *text = blocklog_payload(&shm, c, rec, scratch);
    for (uint32_t i = 0; i < rec->len; i++)
        if (text[i] != turn[i % 16])
            actor_bad("bytes of another turn", r->ref.index);
}

static inline void actor_follow(const struct join_result *r, unsigned *seed)
{
    uint32_t patience = roll(seed, 12);
    struct blocklog_cursor c;
    struct blocklog_record rec;
    bool ended = false;
    enum dac_err e = DAC_OK;

    blocklog_rewind(&c, r->ref);
    for (uint32_t i = 0; i <= patience && !ended; i++) {
        while ((e = blocklog_peek(&shm, &c, &rec)) == DAC_OK) {
            check_record(r, &c, &rec);
            ended = rec.type == RECORD_END;
            blocklog_next(&shm, &c, &rec);
        }
        if (e == DAC_E_CORRUPT)
            actor_bad("corrupt log", r->ref.index);
        if (!ended)
            actor_sleep(ACTOR_PAUSE);
    }
    if (!ended && roll(seed, 2) && flight_ask_cancel(&shm, r->ref.index))
        wake_owner(&shm, r->ref.index);
    if (flight_drop_reader(&shm, r->ref.index))
        wake_owner(&shm, r->ref.index);
}

/* --- names -------------------------------------------------------------------------- */

/* The use that each name is bound to, written down before it is bound and once more after
 * that: whoever dies in between leaves two that differ, and they say nothing. Made before
 * the first fork; NULL: nobody looks. */
struct ledger_line {
    shm_u64 begun, done;
};

static struct ledger_line *actor_ledger;

static inline void open_ledger(void)
{
    actor_ledger =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(actor_ledger, MAP_FAILED);
}

static inline void close_ledger(void)
{
    ck_assert_int_eq(munmap(actor_ledger, 4096), 0);
    actor_ledger = NULL;
}

/* It was claimed: so nothing that it was bound to lasts, but what it was to replace. */
static inline void note_claim(uint32_t name, const struct flight_ref *replaced)
{
    if (!actor_ledger)
        return;
    struct ledger_line *line = &actor_ledger[name];
    uint64_t use = atomic_load(&line->begun);

    if (use == atomic_load(&line->done) && alias_use_lasts(&shm, use) &&
        !(replaced && use == alias_use(*replaced)))
        actor_bad("a second turn for a name", (uint32_t)(use >> 32) - 1);
    atomic_store(&line->begun, 0);
}

static inline void bind_and_note(uint32_t name, uint32_t alias, struct flight_ref ref)
{
    if (actor_ledger)
        atomic_store(&actor_ledger[name].begun, alias_use(ref));
    alias_bind(&shm, alias, ref);
    if (actor_ledger)
        atomic_store(&actor_ledger[name].done, alias_use(ref));
}

/* A question that nobody shares: only the name leads to its flight. */
static inline struct join_request private_question(uint32_t name)
{
    struct join_request req = question(name);

    memcpy(req.key + 8, req.turn_id, sizeof(req.turn_id));
    return req;
}

/* Joins a flight by its name: attaches to the one that it has, or leads one and binds
 * the name to it. */
static inline enum dac_err actor_join_by_name(uint32_t n, struct join_result *r,
                                              unsigned *seed)
{
    struct alias_key key = name_of(0, n);
    struct alias_found found;
    struct flight_ref failed;
    bool replace = false;
    uint32_t alias;
    enum dac_err e = alias_find(&shm, &key, &found);

    if (e == DAC_OK) {
        if (memcmp(found.body, body_of(n), sizeof(found.body)) != 0)
            actor_bad("another name's body", found.ref.index);
        r->ref = found.ref;
        replace = flight_load(&shm, found.ref.index).state == FLIGHT_FAILED;
        failed = found.ref;
        if (!replace || roll(seed, 2))
            return index_follow(&shm, found.ref, 0, &r->role);
    } else if (e != DAC_E_NOT_FOUND) {
        return e;
    }
    e = alias_claim(&shm, &key, body_of(n), 1, replace ? &failed : NULL, &alias, &found);
    if (e != DAC_OK)
        return e;
    note_claim(n, replace ? &failed : NULL);
    struct join_request req =
        roll(seed, 4) ? private_question(n) : question(roll(seed, ACTOR_KEYS));
    e = roll(seed, 8) ? index_join(&shm, &req, r) : DAC_E_BUSY;
    if (e != DAC_OK) {
        alias_drop(&shm, alias);
        return e;
    }
    bind_and_note(n, alias, r->ref);
    return DAC_OK;
}

static inline enum dac_err actor_join(struct join_result *r, unsigned *seed)
{
    struct join_request req = question(roll(seed, ACTOR_KEYS));

    if (roll(seed, 2))
        return actor_join_by_name(roll(seed, ACTOR_NAMES), r, seed);
    req.no_finished = roll(seed, 3) == 0;
    req.result_ttl_ns = roll(seed, 2) ? NS_PER_S : 0;
    return index_join(&shm, &req, r);
}

/* One question: led, followed or read, whatever it turns out to be. */
static inline void worker_step(unsigned *seed)
{
    struct join_result r;
    enum dac_err e = actor_join(&r, seed);

    if (e == DAC_E_BUSY || e == DAC_E_FULL || e == DAC_E_EXISTS || e == DAC_E_NOT_FOUND)
        return;
    must(e, "could not join", 0);
    if (r.role == JOIN_LEADER)
        actor_lead(&r, seed);
    else
        actor_follow(&r, seed);
    slot_beat(&shm, clock_now_ns());
    shm_count(&shm, SHM_C_requests, 1);
}

/* --- recorder ----------------------------------------------------------------------- */

static inline void end_orphan(uint32_t flight, struct flight_word w)
{
    struct join_result r = {.ref = {.index = flight, .incarnation = w.incarnation}};
    struct blocklog_cursor c;
    struct blocklog_record rec;
    struct record_end end = {.status = TURN_RUNNING};
    enum dac_err e;

    if (w.state == FLIGHT_ORPHANED &&
        flight_adopt(&shm, r.ref, FLIGHT_FETCHING) != DAC_OK)
        return;
    blocklog_rewind(&c, r.ref);
    while ((e = blocklog_peek(&shm, &c, &rec)) == DAC_OK) {
        if (rec.type == RECORD_END)
            blocklog_copy(&shm, &c, &rec, &end, sizeof(end));
        blocklog_next(&shm, &c, &rec);
    }
    if (e == DAC_E_CORRUPT)
        actor_bad("corrupt log of an orphan", flight);
    if (end.status != TURN_RUNNING) {
        must(flight_advance(&shm, r.ref,
                            end.status == TURN_COMPLETE    ? FLIGHT_DONE
                            : end.status == TURN_CANCELLED ? FLIGHT_CANCELLED
                                                           : FLIGHT_FAILED),
             "not ended", flight);
        wake_readers(&shm, flight);
        return;
    }
    e = blocklog_open(&shm, r.ref, &r.writer);
    if (e == DAC_E_FULL)
        return; /* it stays this process's and is looked at again */
    must(e, "orphan's log did not open", flight);
    finish(&r, TURN_INCOMPLETE);
}

static inline void store_flight(struct flight_ref ref)
{
    struct shm_flight *f = flight_at(&shm, ref.index);
    struct sample s = {.status = TURN_COMPLETE};

    if (index_put_sample(&shm, ref, &s) != DAC_OK && atomic_load(&f->sample) == 0)
        sample_add(&shm, &s, &f->sample);
    atomic_store_explicit(&f->stored, STORED_SQLITE, memory_order_release);
    wake_readers(&shm, ref.index);
}

/* What is bound by now is stored, what comes later the next time. */
static inline void store_aliases(uint32_t flight)
{
    struct alias_walk walk = alias_walk(&shm, flight);
    struct alias_key key, same;
    uint8_t body[32];
    uint32_t at, n;

    while (alias_walk_next(&shm, &walk, &at)) {
        alias_read(&shm, at, &key, body, NULL);
        memcpy(&n, key.key, sizeof(n));
        same = name_of(0, n);
        if (memcmp(&key, &same, sizeof(key)) != 0 || memcmp(body, body_of(n), 32) != 0)
            actor_bad("an alias that is none", flight);
        alias_set_stored(&shm, at);
    }
    alias_count_stored(&shm, flight);
}

/* Looks at every flight once. */
static inline void recorder_step(enum recycle_rule rule)
{
    uint64_t followers, hits;

    atomic_store(&shm.hdr->pressure, 0);
    for (uint32_t i = 0; i < shm.hdr->flight_count; i++) {
        struct flight_word w = flight_load(&shm, i);
        struct flight_ref ref = {.index = i, .incarnation = w.incarnation};

        if (w.state == FLIGHT_ORPHANED ||
            (flight_state_running(w.state) && w.owner == shm.self))
            end_orphan(i, w);
        w = flight_load(&shm, i);
        if (!flight_state_ended(w.state))
            continue;
        if (atomic_load(&flight_at(&shm, i)->stored) == STORED_NO)
            store_flight(ref);
        if (alias_pending(&shm, i))
            store_aliases(i);
        enum dac_err e = index_recycle(&shm, ref, rule, clock_now_ns(), NS_PER_S / 2,
                                       &followers, &hits);
        if (e != DAC_OK && e != DAC_E_STATE && e != DAC_E_BUSY)
            actor_bad("could not recycle", i);
    }
}

/* --- the end ------------------------------------------------------------------------ */

/* Takes every bucket's lock once: who died with one leaves its chain to the next. */
static inline void repair_every_bucket(void)
{
    for (uint32_t i = 0; i < shm.hdr->bucket_count; i++) {
        struct join_request req = question(i);
        struct join_result r;

        req.key[30] = 1; /* a key of that bucket that nobody else asks for */
        ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
        ck_assert_int_eq(r.role, JOIN_LEADER);
        end_flight(&r.ref, &r.writer, FLIGHT_FAILED, clock_now_ns());
        flight_drop_reader(&shm, r.ref.index);
        atomic_store(&flight_at(&shm, r.ref.index)->stored, STORED_FAILED);
        ck_assert_int_eq(recycle(r.ref), DAC_OK);
    }
}

/* Every alias can be had, and none twice. */
static inline void claim_every_alias(void)
{
    struct join_request req = question(0);
    struct alias_found found;
    struct alias_key key;
    struct join_result r;
    uint32_t alias;

    ck_assert_uint_eq(alias_used(&shm), 0);
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    for (uint32_t i = 0; i < shm.hdr->alias_count; i++) {
        key = name_of(1, i);
        ck_assert_int_eq(alias_claim(&shm, &key, body_of(i), 1, NULL, &alias, &found),
                         DAC_OK);
        alias_bind(&shm, alias, r.ref);
    }
    key = name_of(2, 0);
    ck_assert_int_eq(alias_claim(&shm, &key, body_of(0), 1, NULL, &alias, &found),
                     DAC_E_FULL);
    ck_assert_uint_eq(alias_used(&shm), shm.hdr->alias_count);
    end_flight(&r.ref, &r.writer, FLIGHT_FAILED, clock_now_ns());
    flight_drop_reader(&shm, r.ref.index);
    atomic_store(&flight_at(&shm, r.ref.index)->stored, STORED_FAILED);
    for (uint32_t i = 0; i < shm.hdr->alias_count; i++)
        alias_set_stored(&shm, i);
    ck_assert_uint_eq(alias_count_stored(&shm, r.ref.index), 0);
    ck_assert_int_eq(recycle(r.ref), DAC_OK);
    ck_assert_uint_eq(alias_used(&shm), 0);
}

/* All actors are dead and buried: everything can be put in order, and then nothing is
 * held by anybody. */
static inline void assert_nothing_leaked(void)
{
    uint32_t slot = new_recorder();

    shm.self = slot;
    slot_recount(&shm);
    for (int i = 0; i < 3; i++)
        recorder_step(RECYCLE_PRESSURE);
    repair_every_bucket();
    claim_every_alias();
    assert_all_valid();
    ck_assert_uint_eq(flights_in_use(), 0);
    ck_assert_uint_eq(blocks_in_use(), 0);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 0);
    slot_recount(&shm);
    ck_assert_uint_eq(blocks_free_hint(&shm), shm.hdr->block_count);
    slot_sweep(&shm, slot);
    shm.self = SHM_NO_SLOT;
    for (uint32_t i = 0; i < SHM_SLOTS; i++)
        ck_assert_int_eq(slot_state(&shm, i), SLOT_FREE);
}

#endif
