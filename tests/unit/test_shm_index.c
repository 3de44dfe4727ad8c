/*
 * The key index: the role of a newcomer in every state, chains of colliding keys,
 * attaching, abandoning, recycling, and rebuilding a chain that a death left half done.
 * One process plays several slots.
 */
#include <signal.h>

#include "tests/shm/segment_fixture.h"

static uint32_t a, b, c;

static void setup(void)
{
    fixture_open(64);
    a = new_worker();
    b = new_worker();
    c = new_worker();
    shm.self = a;
}

static void teardown(void)
{
    fixture_close();
}

static struct join_result join(const struct join_request *req, uint32_t slot)
{
    struct join_result r;

    shm.self = slot;
    ck_assert_int_eq(index_join(&shm, req, &r), DAC_OK);
    return r;
}

static struct join_result lead(uint32_t key)
{
    struct join_request req = question(key);
    struct join_result r = join(&req, a);

    ck_assert_int_eq(r.role, JOIN_LEADER);
    return r;
}

static struct shm_flight *flight_of(const struct join_result *r)
{
    return flight_at(&shm, r->ref.index);
}

static bool reads(uint32_t slot, const struct join_result *r)
{
    return flight_readers(&shm, r->ref.index) >> slot & 1;
}

/* --- roles -------------------------------------------------------------------------- */

#define TTL_NS   (10 * NS_PER_S)
#define ERROR_NS (2 * NS_PER_S)
#define END_NS   (100 * NS_PER_S)

/* What a newcomer of the same key becomes. Times are nanoseconds after the end. */
static const struct {
    enum flight_state state;
    uint64_t later_ns;
    bool no_finished;
    uint32_t requests;
    enum join_role want;
} roles[] = {
    {FLIGHT_CLAIMED, 0, false, 0, JOIN_FOLLOWER},
    {FLIGHT_QUEUED, 0, false, 0, JOIN_FOLLOWER},
    {FLIGHT_FETCHING, 0, false, 0, JOIN_FOLLOWER},
    {FLIGHT_STREAMING, 0, false, 0, JOIN_FOLLOWER},
    {FLIGHT_STREAMING, 0, true, 0, JOIN_FOLLOWER},
    {FLIGHT_ORPHANED, 0, false, 0, JOIN_FOLLOWER},
    {FLIGHT_QUEUED, 0, false, FLIGHT_ASK_CANCEL, JOIN_LEADER},
    {FLIGHT_STREAMING, 0, false, FLIGHT_ASK_CANCEL, JOIN_LEADER},
    {FLIGHT_STREAMING, 0, false, FLIGHT_CLOSED, JOIN_LEADER},
    {FLIGHT_ORPHANED, 0, false, FLIGHT_CLOSED, JOIN_LEADER},
    {FLIGHT_DONE, 0, false, 0, JOIN_HIT},
    {FLIGHT_DONE, TTL_NS - 1, false, 0, JOIN_HIT},
    {FLIGHT_DONE, TTL_NS, false, 0, JOIN_LEADER},
    {FLIGHT_DONE, 0, true, 0, JOIN_LEADER},
    {FLIGHT_DONE, 0, false, FLIGHT_ASK_CANCEL, JOIN_HIT}, /* the stop came too late */
    {FLIGHT_FAILED, 0, false, 0, JOIN_FAILURE},
    {FLIGHT_FAILED, ERROR_NS - 1, false, 0, JOIN_FAILURE},
    {FLIGHT_FAILED, ERROR_NS, false, 0, JOIN_LEADER},
    {FLIGHT_FAILED, 0, true, 0, JOIN_LEADER},
    {FLIGHT_FAILED, 0, false, FLIGHT_CLOSED, JOIN_LEADER}, /* its question never came */
    {FLIGHT_CANCELLED, 0, false, 0, JOIN_LEADER},
    {FLIGHT_CANCELLED, 0, true, 0, JOIN_LEADER},
};

static void force(struct join_result *r, enum flight_state state)
{
    bool owned = state >= FLIGHT_CLAIMED && state <= FLIGHT_STREAMING;

    if (flight_state_ended(state)) {
        ck_assert_int_eq(flight_advance(&shm, r->ref, FLIGHT_QUEUED), DAC_OK);
        ck_assert_int_eq(flight_advance(&shm, r->ref, FLIGHT_FETCHING), DAC_OK);
        end_flight(&r->ref, &r->writer, state, END_NS);
        return;
    }
    struct flight_word w = {.state = state,
                            .owner = owned ? a : SHM_NO_SLOT,
                            .incarnation = r->ref.incarnation};
    atomic_store(&flight_of(r)->word, flight_pack(w));
}

START_TEST(newcomers_role)
{
    struct join_request req = question(7);
    struct join_result first, second;
    bool joins = roles[_i].want != JOIN_LEADER;

    req.result_ttl_ns = TTL_NS;
    req.error_ttl_ns = ERROR_NS;
    first = join(&req, a);
    ck_assert_int_eq(first.role, JOIN_LEADER);
    ck_assert(reads(a, &first));
    force(&first, roles[_i].state);
    atomic_store(&flight_of(&first)->requests, roles[_i].requests);

    struct join_request next = question(7);
    next.result_ttl_ns = 0; /* the flight's own counts, not the newcomer's */
    next.error_ttl_ns = ERROR_NS;
    next.now_ns = END_NS + roles[_i].later_ns;
    next.no_finished = roles[_i].no_finished;
    next.abandon_grace_ns = req.abandon_grace_ns + 5;
    second = join(&next, b);
    ck_assert_int_eq(second.role, roles[_i].want);
    ck_assert_int_eq(second.ref.index == first.ref.index, joins);
    ck_assert(reads(b, &second));
    ck_assert_int_eq(reads(b, &first), joins);
    const struct shm_flight *f = flight_of(&first);
    ck_assert_uint_eq(atomic_load(&f->followers), roles[_i].want == JOIN_FOLLOWER);
    ck_assert_uint_eq(atomic_load(&f->hits), roles[_i].want == JOIN_HIT);
    ck_assert_uint_eq(atomic_load(&f->abandon_grace_ns),
                      req.abandon_grace_ns + (joins ? 5 : 0));
    if (joins)
        return;
    /* From now on the newest one is found, whatever the first one is. */
    ck_assert_int_eq(memcmp(flight_of(&second)->turn_id, next.turn_id, 16), 0);
    ck_assert_uint_eq(flight_load(&shm, second.ref.index).owner, b);
    struct join_result third = join(&req, c);
    ck_assert_int_eq(third.role, JOIN_FOLLOWER);
    ck_assert_uint_eq(third.ref.index, second.ref.index);
}
END_TEST

START_TEST(leader_is_filled_in_and_has_an_open_log)
{
    struct join_request req = question(3);
    struct join_result r;

    memset(req.org, 5, sizeof(req.org));
    req.trace = (struct trace){.id = {1, [15] = 9}, .flags = TRACE_SAMPLED};
    req.provider = 0;
    req.kind = FLIGHT_THREAD;
    req.created_us = 77;
    r = join(&req, b);
    const struct shm_flight *f = flight_of(&r);
    ck_assert_int_eq(memcmp(f->key, req.key, sizeof(f->key)), 0);
    ck_assert_int_eq(memcmp(f->turn_id, req.turn_id, 16), 0);
    ck_assert_int_eq(memcmp(f->org, req.org, 16), 0);
    const struct trace trace = flight_trace(&shm, r.ref.index);
    ck_assert_mem_eq(&trace, &req.trace, sizeof(trace));
    ck_assert_uint_eq(atomic_load(&f->kind), FLIGHT_THREAD);
    ck_assert_uint_eq(atomic_load(&f->arrived_ns), req.arrived_ns);
    ck_assert_uint_eq(atomic_load(&f->result_ttl_ns), req.result_ttl_ns);
    ck_assert_int_eq(f->created_us, 77);
    ck_assert_uint_eq(atomic_load(&f->bucket), index_bucket_of(&shm, req.key) + 1);
    ck_assert_int_eq(flight_load(&shm, r.ref.index).state, FLIGHT_CLAIMED);
    ck_assert_int_eq(blocklog_append(&shm, &r.writer, RECORD_REQUEST, "{}", 2), DAC_OK);
    ck_assert_uint_eq(atomic_load(&shm.slots[b].locking_bucket), 0);
    assert_all_valid();
}
END_TEST

START_TEST(same_worker_joins_twice)
{
    struct join_request req = question(3);
    struct join_result r = join(&req, a);
    struct join_result again = join(&req, a);

    ck_assert_int_eq(again.role, JOIN_FOLLOWER);
    ck_assert_uint_eq(again.ref.index, r.ref.index);
    ck_assert_uint_eq(flight_readers(&shm, r.ref.index), UINT64_C(1) << a);
}
END_TEST

/* --- chains ------------------------------------------------------------------------- */

/* A key of bucket 5 that differs from the others behind the hash. */
static struct join_request colliding(uint32_t n)
{
    struct join_request req = question(5);

    memcpy(req.key + 8, &n, sizeof(n));
    return req;
}

START_TEST(colliding_keys_stay_apart)
{
    struct join_result r[20];

    for (uint32_t i = 0; i < DAC_ARRAY_LEN(r); i++) {
        struct join_request req = colliding(i);
        r[i] = join(&req, a);
        ck_assert_int_eq(r[i].role, JOIN_LEADER);
    }
    for (uint32_t i = 0; i < DAC_ARRAY_LEN(r); i++) {
        struct join_request req = colliding(i);
        struct join_result again = join(&req, b);
        ck_assert_int_eq(again.role, JOIN_FOLLOWER);
        ck_assert_uint_eq(again.ref.index, r[i].ref.index);
    }
    assert_all_valid();
}
END_TEST

/* Takes flights out of the chain at both ends and inside, in several orders. */
START_TEST(any_link_can_leave)
{
    static const uint32_t orders[][5] = {
        {0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 0, 4, 1, 3}, {1, 3, 0, 2, 4}};
    struct join_result r[5];
    bool gone[5] = {false};

    for (uint32_t i = 0; i < 5; i++) {
        struct join_request req = colliding(i);
        r[i] = join(&req, a);
        end_flight(&r[i].ref, &r[i].writer, FLIGHT_FAILED, clock_now_ns());
        flight_drop_reader(&shm, r[i].ref.index);
        atomic_store(&flight_of(&r[i])->stored, STORED_SQLITE);
    }
    for (uint32_t k = 0; k < 5; k++) {
        uint32_t leaving = orders[_i][k];
        ck_assert_int_eq(recycle(r[leaving].ref), DAC_OK);
        gone[leaving] = true;
        assert_all_valid();
        for (uint32_t i = 0; i < 5; i++) {
            ck_assert_int_eq(atomic_load(&flight_of(&r[i])->bucket) == 0, gone[i]);
            ck_assert_int_eq(recycle(r[leaving].ref), DAC_E_STATE);
        }
    }
    ck_assert_uint_eq(atomic_load(&shm.buckets[5].head), 0);
}
END_TEST

START_TEST(full_table_refuses_and_joins_still_work)
{
    struct join_request req = question(1);
    struct join_result r;

    for (uint32_t i = 0; i < 64; i++)
        lead(i);
    req = question(64);
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_E_FULL);
    ck_assert_uint_eq(atomic_load(&shm.hdr->pressure), 1);
    req = question(63);
    ck_assert_int_eq(join(&req, b).role, JOIN_FOLLOWER);
    assert_all_valid();
}
END_TEST

/* --- by turn id --------------------------------------------------------------------- */

START_TEST(turn_is_found_and_attached)
{
    struct join_request req = question(9);
    struct join_result r = join(&req, a);
    struct flight_ref ref, claim;
    uint8_t unknown[16] = {0xff};
    uint8_t claimed[16] = {0xfe};

    /* Not before it is indexed. */
    ck_assert_int_eq(flight_claim(&shm, &claim), DAC_OK);
    memcpy(flight_at(&shm, claim.index)->turn_id, claimed, sizeof(claimed));
    ck_assert(!index_find_turn(&shm, claimed, &ref));
    flight_unclaim(&shm, claim);
    ck_assert(!index_find_turn(&shm, claimed, &ref));
    ck_assert(index_find_turn(&shm, req.turn_id, &ref));
    ck_assert_uint_eq(ref.index, r.ref.index);
    ck_assert_uint_eq(ref.incarnation, r.ref.incarnation);
    ck_assert(!index_find_turn(&shm, unknown, &ref));

    shm.self = b;
    ck_assert_int_eq(index_attach(&shm, r.ref, unknown), DAC_E_NOT_FOUND);
    ck_assert(!reads(b, &r));
    ref.incarnation++;
    ck_assert_int_eq(index_attach(&shm, ref, req.turn_id), DAC_E_NOT_FOUND);
    ck_assert(!reads(b, &r));
    ck_assert_int_eq(index_attach(&shm, r.ref, req.turn_id), DAC_OK);
    ck_assert(reads(b, &r));

    /* Its next use is another turn. */
    shm.self = a;
    ck_assert_int_eq(flight_advance(&shm, r.ref, FLIGHT_QUEUED), DAC_OK);
    ck_assert_int_eq(flight_advance(&shm, r.ref, FLIGHT_FETCHING), DAC_OK);
    end_flight(&r.ref, &r.writer, FLIGHT_DONE, clock_now_ns());
    atomic_store(&flight_of(&r)->stored, STORED_SQLITE);
    atomic_store(&flight_of(&r)->readers, 0);
    ck_assert_int_eq(recycle(r.ref), DAC_OK);
    ck_assert(!index_find_turn(&shm, req.turn_id, &ref));
    ck_assert_int_eq(index_attach(&shm, r.ref, req.turn_id), DAC_E_NOT_FOUND);
}
END_TEST

/* --- abandoning --------------------------------------------------------------------- */

/* Who knows the use joins it, whatever newcomers with its key become. */
static const struct {
    enum flight_state state;
    uint32_t requests;
    enum join_role want;
} followed[] = {
    {FLIGHT_CLAIMED, 0, JOIN_FOLLOWER},
    {FLIGHT_STREAMING, 0, JOIN_FOLLOWER},
    {FLIGHT_STREAMING, FLIGHT_ASK_CANCEL, JOIN_FOLLOWER},
    {FLIGHT_ORPHANED, FLIGHT_CLOSED, JOIN_FOLLOWER},
    {FLIGHT_DONE, 0, JOIN_HIT},
    {FLIGHT_CANCELLED, 0, JOIN_HIT},
    {FLIGHT_FAILED, FLIGHT_CLOSED, JOIN_FAILURE},
};

START_TEST(use_is_followed_as_it_is)
{
    struct join_result r = lead(13);
    struct flight_ref other = {.index = r.ref.index,
                               .incarnation = r.ref.incarnation + 1};
    uint64_t grace = atomic_load(&flight_of(&r)->abandon_grace_ns);
    enum join_role role, want = followed[_i].want;

    force(&r, followed[_i].state);
    atomic_store(&flight_of(&r)->requests, followed[_i].requests);
    shm.self = b;
    ck_assert_int_eq(index_follow(&shm, other, 0, &role), DAC_E_NOT_FOUND);
    ck_assert(!reads(b, &r));
    ck_assert_int_eq(index_follow(&shm, r.ref, grace + 5, &role), DAC_OK);
    ck_assert_int_eq(role, want);
    ck_assert(reads(b, &r));
    ck_assert_uint_eq(atomic_load(&flight_of(&r)->followers), want == JOIN_FOLLOWER);
    ck_assert_uint_eq(atomic_load(&flight_of(&r)->hits), want == JOIN_HIT);
    ck_assert_uint_eq(atomic_load(&flight_of(&r)->abandon_grace_ns), grace + 5);
}
END_TEST

START_TEST(abandoned_only_without_readers)
{
    struct join_result r = lead(4);
    struct join_request req = question(4);
    struct flight_ref stale = {r.ref.index, r.ref.incarnation - 1};

    ck_assert_int_eq(index_abandon(&shm, r.ref), DAC_E_STATE);
    ck_assert_int_eq(index_abandon(&shm, stale), DAC_E_NOT_FOUND);
    ck_assert_uint_eq(atomic_load(&flight_of(&r)->requests), 0);
    ck_assert(flight_drop_reader(&shm, r.ref.index));
    /* A newcomer inside the grace keeps it alive. */
    ck_assert_int_eq(join(&req, b).role, JOIN_FOLLOWER);
    shm.self = a;
    ck_assert_int_eq(index_abandon(&shm, r.ref), DAC_E_STATE);
    shm.self = b;
    ck_assert(flight_drop_reader(&shm, r.ref.index));
    shm.self = a;
    ck_assert_int_eq(index_abandon(&shm, r.ref), DAC_OK);
    ck_assert_uint_eq(atomic_load(&flight_of(&r)->requests), FLIGHT_CLOSED);
    /* Closed means closed. */
    ck_assert_int_eq(join(&req, b).role, JOIN_LEADER);
}
END_TEST

/* --- recycling ---------------------------------------------------------------------- */

static const struct {
    enum flight_state state;
    enum flight_stored stored;
    bool reader;
    enum recycle_rule rule;
    uint64_t later_ns;
    enum dac_err want;
} recycles[] = {
    {FLIGHT_DONE, STORED_SQLITE, false, RECYCLE_EXPIRED, TTL_NS, DAC_OK},
    {FLIGHT_DONE, STORED_SQLITE, false, RECYCLE_EXPIRED, TTL_NS - 1, DAC_E_STATE},
    {FLIGHT_DONE, STORED_SQLITE, false, RECYCLE_PRESSURE, 0, DAC_OK},
    {FLIGHT_DONE, STORED_SQLITE, true, RECYCLE_EXPIRED, TTL_NS, DAC_E_STATE},
    {FLIGHT_DONE, STORED_SQLITE, true, RECYCLE_PRESSURE, TTL_NS, DAC_E_STATE},
    {FLIGHT_DONE, STORED_NO, false, RECYCLE_EXPIRED, TTL_NS, DAC_E_STATE},
    {FLIGHT_DONE, STORED_NO, false, RECYCLE_PRESSURE, TTL_NS, DAC_E_STATE},
    {FLIGHT_DONE, STORED_FAILED, false, RECYCLE_EXPIRED, TTL_NS, DAC_OK},
    {FLIGHT_DONE, STORED_SPOOL, false, RECYCLE_EXPIRED, TTL_NS, DAC_OK},
    {FLIGHT_FAILED, STORED_SQLITE, false, RECYCLE_EXPIRED, ERROR_NS - 1, DAC_E_STATE},
    {FLIGHT_FAILED, STORED_SQLITE, false, RECYCLE_EXPIRED, ERROR_NS, DAC_OK},
    {FLIGHT_FAILED, STORED_SQLITE, false, RECYCLE_PRESSURE, 0, DAC_OK},
    {FLIGHT_CANCELLED, STORED_SQLITE, false, RECYCLE_EXPIRED, 0, DAC_OK},
    {FLIGHT_STREAMING, STORED_SQLITE, false, RECYCLE_PRESSURE, TTL_NS, DAC_E_STATE},
    {FLIGHT_ORPHANED, STORED_SQLITE, false, RECYCLE_PRESSURE, TTL_NS, DAC_E_STATE},
};

START_TEST(recycled_by_the_rules)
{
    struct join_request req = question(6);
    uint64_t followers = 99, hits = 99;
    struct join_result r;

    req.result_ttl_ns = TTL_NS;
    r = join(&req, a);
    force(&r, recycles[_i].state);
    atomic_store(&flight_of(&r)->stored, recycles[_i].stored);
    atomic_store(&flight_of(&r)->followers, 3);
    atomic_store(&flight_of(&r)->hits, 4);
    if (!recycles[_i].reader)
        flight_drop_reader(&shm, r.ref.index);
    ck_assert_int_eq(index_recycle(&shm, r.ref, recycles[_i].rule,
                                   END_NS + recycles[_i].later_ns, ERROR_NS, &followers,
                                   &hits),
                     recycles[_i].want);
    struct flight_word w = flight_load(&shm, r.ref.index);
    bool freed = recycles[_i].want == DAC_OK;
    ck_assert_int_eq(w.state, freed ? FLIGHT_FREE : recycles[_i].state);
    ck_assert_uint_eq(w.incarnation, r.ref.incarnation + freed);
    ck_assert_uint_eq(followers, freed ? 3 : 99);
    ck_assert_uint_eq(hits, freed ? 4 : 99);
    ck_assert_uint_eq(atomic_load(&flight_of(&r)->bucket) == 0, freed);
    ck_assert_uint_eq(atomic_load(&shm.hdr->flights_used), !freed);
    char why[160];
    ck_assert_msg(index_valid(&shm, index_bucket_of(&shm, req.key), why, sizeof(why)),
                  "%s", why);
}
END_TEST

/* A recycler died between unlinking and freeing. */
START_TEST(unlinked_and_not_freed_is_freed_later)
{
    struct join_result r = lead(6);
    uint64_t followers, hits;

    force(&r, FLIGHT_DONE);
    atomic_store(&flight_of(&r)->stored, STORED_SQLITE);
    atomic_store(&flight_of(&r)->readers, 0);
    atomic_store(&flight_of(&r)->bucket, 0);
    index_rebuild(&shm, 6);
    ck_assert_int_eq(index_attach(&shm, r.ref, flight_of(&r)->turn_id), DAC_E_NOT_FOUND);
    ck_assert_int_eq(
        index_recycle(&shm, r.ref, RECYCLE_EXPIRED, END_NS, 0, &followers, &hits),
        DAC_E_STATE); /* the TTL counts all the same */
    ck_assert_int_eq(recycle(r.ref), DAC_OK);
    ck_assert_uint_eq(flights_in_use(), 0);
    assert_all_valid();
}
END_TEST

/* --- samples ------------------------------------------------------------------------ */

/* Each hit is counted once, whether it came before the sample or after it. */
START_TEST(sample_has_the_hits_before_and_behind_it)
{
    struct join_result r = lead(6);
    struct join_request req = question(6);
    struct sample s = {.status = TURN_COMPLETE, .followers = 99, .hits = 99};
    struct sample out;

    ck_assert_int_eq(join(&req, b).role, JOIN_FOLLOWER);
    shm.self = a;
    force(&r, FLIGHT_DONE);
    req.now_ns = END_NS;
    ck_assert_int_eq(join(&req, b).role, JOIN_HIT);
    ck_assert_int_eq(join(&req, c).role, JOIN_HIT);
    ck_assert_int_eq(index_put_sample(&shm, r.ref, &s), DAC_OK);
    ck_assert_int_eq(join(&req, b).role, JOIN_HIT);
    ck_assert_int_eq(index_put_sample(&shm, r.ref, &s), DAC_OK); /* it is there */
    ck_assert_uint_eq(sample_read(&shm, &out, 1), 1);
    ck_assert_uint_eq(out.followers, 1);
    ck_assert_uint_eq(out.hits, 3);
    ck_assert_uint_eq(atomic_load(&shm.hdr->sample_seq), 1);
    r.ref.incarnation++;
    ck_assert_int_eq(index_put_sample(&shm, r.ref, &s), DAC_E_NOT_FOUND);
}
END_TEST

/* --- locks -------------------------------------------------------------------------- */

START_TEST(held_lock_is_busy_after_20_ms_and_leaks_nothing)
{
    struct join_request req = question(12);
    struct join_result r = lead(12);
    uint64_t followers, hits, start;

    force(&r, FLIGHT_DONE);
    flight_drop_reader(&shm, r.ref.index);
    atomic_store(&flight_of(&r)->stored, STORED_SQLITE);
    pid_t pid = fork();
    if (pid == 0) { /* a normal mutex does not notice its own thread */
        pthread_mutex_lock(&shm.buckets[12].lock);
        atomic_store(&shm.slots[c].pid, 1);
        for (;;)
            pause();
    }
    while (atomic_load(&shm.slots[c].pid) == 0)
        usleep(100);
    start = clock_now_ns();
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_E_BUSY);
    ck_assert_uint_ge(clock_now_ns() - start, BUCKET_LOCK_NS);
    ck_assert_uint_lt(clock_now_ns() - start, 20 * BUCKET_LOCK_NS);
    ck_assert_int_eq(index_attach(&shm, r.ref, req.turn_id), DAC_E_BUSY);
    ck_assert_int_eq(index_abandon(&shm, r.ref), DAC_E_BUSY);
    ck_assert_int_eq(
        index_recycle(&shm, r.ref, RECYCLE_PRESSURE, END_NS, 0, &followers, &hits),
        DAC_E_BUSY);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_timeouts), 4);
    ck_assert_uint_eq(atomic_load(&shm.slots[a].locking_bucket), 0);
    ck_assert_uint_eq(flights_in_use(), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    ck_assert_int_eq(recycle(r.ref), DAC_OK); /* repairs on its way */
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 1);
    assert_all_valid();
}
END_TEST

/* --- rebuilding --------------------------------------------------------------------- */

enum damage {
    HEAD_LOST,
    LINK_LOST,
    TAIL_LOST,
    CIRCLE,
    FOREIGN,
    STALE_FREE,
    ORDER,
    HEAD_WILD,
    DAMAGES
};

static void damage(enum damage how, const struct join_result *r)
{
    struct shm_flight *f[3] = {flight_of(&r[0]), flight_of(&r[1]), flight_of(&r[2])};

    switch (how) {
    case HEAD_LOST:
        atomic_store(&shm.buckets[5].head, 0);
        break;
    case LINK_LOST: /* the chain goes 2, 1, 0 */
        atomic_store(&f[2]->next, 0);
        break;
    case TAIL_LOST:
        atomic_store(&f[1]->next, 0);
        break;
    case CIRCLE:
        atomic_store(&f[0]->next, r[2].ref.index + 1);
        break;
    case FOREIGN:
        atomic_store(&f[0]->next, r[3].ref.index + 1);
        break;
    case STALE_FREE:
        atomic_store(&flight_at(&shm, 60)->bucket, 6);
        break;
    case ORDER:
        atomic_store(&shm.buckets[5].head, r[0].ref.index + 1);
        atomic_store(&f[0]->next, r[1].ref.index + 1);
        atomic_store(&f[1]->next, r[2].ref.index + 1);
        atomic_store(&f[2]->next, 0);
        break;
    case HEAD_WILD:
        atomic_store(&shm.buckets[5].head, 1000);
        break;
    default:
        break;
    }
}

START_TEST(rebuilt_from_the_flights_themselves)
{
    struct join_result r[4];
    char why[160] = "";

    for (uint32_t i = 0; i < 3; i++) {
        struct join_request req = colliding(i);
        r[i] = join(&req, a);
    }
    r[3] = lead(13);
    ck_assert(index_valid(&shm, 5, why, sizeof(why)));
    damage((enum damage)_i, r);
    ck_assert(!index_valid(&shm, 5, why, sizeof(why)));
    ck_assert_str_ne(why, "");
    index_rebuild(&shm, 5);
    ck_assert_msg(index_valid(&shm, 5, why, sizeof(why)), "%s", why);
    ck_assert(index_valid(&shm, 13, why, sizeof(why)));
    for (uint32_t i = 0; i < 3; i++) {
        struct join_request req = colliding(i);
        ck_assert_uint_eq(join(&req, b).ref.index, r[i].ref.index);
    }
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, 60)->bucket), 0);
    ck_assert_uint_eq(atomic_load(&shm.buckets[5].head), r[2].ref.index + 1);
}
END_TEST

/* Where flights lie says nothing about their order: here the newest lies before the
 * oldest. */
START_TEST(rebuilt_in_the_order_of_joining)
{
    struct join_result r[3];
    char why[160] = "";

    for (uint32_t i = 0; i < 3; i++) {
        struct join_request req = colliding(i);
        atomic_store(&shm.hdr->flight_hand, 30 - 10 * i);
        r[i] = join(&req, a);
        ck_assert_uint_eq(r[i].ref.index, 30 - 10 * i);
    }
    index_rebuild(&shm, 5);
    ck_assert_msg(index_valid(&shm, 5, why, sizeof(why)), "%s", why);
    ck_assert_uint_eq(atomic_load(&shm.buckets[5].head), r[2].ref.index + 1);
    ck_assert_uint_eq(atomic_load(&flight_of(&r[0])->next), 0);
}
END_TEST

/* A bucket that does not exist is followed by nobody. */
START_TEST(wild_bucket_is_not_followed)
{
    struct join_result r = lead(13);
    struct sample s = {.status = TURN_COMPLETE};
    uint8_t turn[16];

    memcpy(turn, flight_of(&r)->turn_id, sizeof(turn));
    atomic_store(&flight_of(&r)->bucket, shm.hdr->bucket_count + 1);
    ck_assert_int_eq(index_attach(&shm, r.ref, turn), DAC_E_NOT_FOUND);
    ck_assert_int_eq(index_abandon(&shm, r.ref), DAC_E_NOT_FOUND);
    ck_assert_int_eq(index_put_sample(&shm, r.ref, &s), DAC_E_NOT_FOUND);
    end_flight(&r.ref, &r.writer, FLIGHT_FAILED, 1);
    flight_drop_reader(&shm, r.ref.index);
    atomic_store(&flight_of(&r)->stored, STORED_SQLITE);
    ck_assert_int_eq(recycle(r.ref), DAC_E_STATE);
}
END_TEST

/* Whoever works on a broken chain neither crashes under the lock nor runs in a circle,
 * and recycling, which must find its flight, mends it. */
START_TEST(broken_chain_is_survived_and_mended)
{
    struct join_result r[4];
    char why[160] = "";

    for (uint32_t i = 0; i < 3; i++) {
        struct join_request req = colliding(i);
        r[i] = join(&req, a);
    }
    r[3] = lead(13);
    end_flight(&r[0].ref, &r[0].writer, FLIGHT_FAILED, 1);
    flight_drop_reader(&shm, r[0].ref.index);
    atomic_store(&flight_of(&r[0])->stored, STORED_SQLITE);
    damage((enum damage)_i, r);
    struct join_request req = colliding(77);
    struct join_result fresh = join(&req, b);
    ck_assert_int_eq(fresh.role, JOIN_LEADER);
    ck_assert_uint_eq(join(&req, c).ref.index, fresh.ref.index);
    shm.self = a;
    ck_assert_int_eq(recycle(r[0].ref), DAC_OK);
    if (_i != STALE_FREE && _i != ORDER && _i != FOREIGN && _i != CIRCLE)
        ck_assert_msg(index_valid(&shm, 5, why, sizeof(why)), "%s", why);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("key index");
    TCase *t = tcase_create("index");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, newcomers_role, 0, DAC_ARRAY_LEN(roles));
    tcase_add_test(t, leader_is_filled_in_and_has_an_open_log);
    tcase_add_test(t, same_worker_joins_twice);
    tcase_add_test(t, colliding_keys_stay_apart);
    tcase_add_loop_test(t, any_link_can_leave, 0, 4);
    tcase_add_test(t, full_table_refuses_and_joins_still_work);
    tcase_add_test(t, turn_is_found_and_attached);
    tcase_add_loop_test(t, use_is_followed_as_it_is, 0, DAC_ARRAY_LEN(followed));
    tcase_add_test(t, abandoned_only_without_readers);
    tcase_add_loop_test(t, recycled_by_the_rules, 0, DAC_ARRAY_LEN(recycles));
    tcase_add_test(t, unlinked_and_not_freed_is_freed_later);
    tcase_add_test(t, sample_has_the_hits_before_and_behind_it);
    tcase_add_test(t, held_lock_is_busy_after_20_ms_and_leaks_nothing);
    tcase_add_loop_test(t, rebuilt_from_the_flights_themselves, 0, DAMAGES);
    tcase_add_test(t, rebuilt_in_the_order_of_joining);
    tcase_add_test(t, wild_bucket_is_not_followed);
    tcase_add_loop_test(t, broken_chain_is_survived_and_mended, 0, DAMAGES);
    suite_add_tcase(s, t);
    return run_suite(s);
}
