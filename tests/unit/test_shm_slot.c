/*
 * Slots: taking, states, sweeping the dead in every state they can die in, counters,
 * recounting; and the wake-up's flag and bits, step by step.
 */
#include <errno.h>

#include "tests/shm/segment_fixture.h"

static uint32_t a, b;

static void setup(void)
{
    fixture_open(130);
    a = new_worker();
    b = new_worker();
    shm.self = a;
}

static void teardown(void)
{
    fixture_close();
}

static struct join_result lead(uint32_t key, uint32_t slot)
{
    struct join_request req = question(key);
    struct join_result r;

    shm.self = slot;
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_int_eq(r.role, JOIN_LEADER);
    return r;
}

static void follow(uint32_t key, uint32_t slot)
{
    struct join_request req = question(key);
    struct join_result r;

    shm.self = slot;
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_int_eq(r.role, JOIN_FOLLOWER);
}

/* What the slot's own bits say, taken away; at most one flight expected. */
static uint32_t taken;
static uint32_t taken_count;

static void note(void *arg, uint32_t flight)
{
    (void)arg;
    taken = flight;
    taken_count++;
}

static uint32_t take_bits(uint32_t slot)
{
    shm.self = slot;
    taken_count = 0;
    wake_take(&shm, note, NULL);
    return taken_count;
}

static bool readable(uint32_t slot)
{
    uint64_t n;

    return read(shm.eventfd[slot], &n, sizeof(n)) == (ssize_t)sizeof(n);
}

/* --- giving out --------------------------------------------------------------------- */

START_TEST(slots_run_out_and_come_back)
{
    uint32_t slot;
    uint64_t seen = 0;

    slot_sweep(&shm, a);
    slot_sweep(&shm, b);
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, i, &slot), DAC_OK);
        ck_assert_uint_lt(slot, SHM_SLOTS);
        ck_assert_uint_eq(seen >> slot & 1, 0);
        seen |= UINT64_C(1) << slot;
        ck_assert_int_eq(slot_state(&shm, slot), SLOT_STARTING);
        if (i < SHM_WORKERS_MAX)
            ck_assert_uint_eq(atomic_load(&shm.hdr->ordinal_slot[i]), slot);
    }
    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, 0, &slot), DAC_E_FULL);
    slot_sweep(&shm, 17);
    ck_assert_int_eq(slot_take(&shm, SLOT_RECORDER, 0, &slot), DAC_OK);
    ck_assert_uint_eq(slot, 17);
    ck_assert_uint_eq(atomic_load(&shm.hdr->recorder_slot), 17);
    slot_sweep(&shm, 17);
    ck_assert_uint_eq(atomic_load(&shm.hdr->recorder_slot), SHM_NO_SLOT);
    assert_all_valid();
}
END_TEST

/* The newest process of an ordinal has it; an older one's sweep does not take it away. */
START_TEST(ordinal_belongs_to_the_newest)
{
    uint32_t old, fresh;

    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, 3, &old), DAC_OK);
    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, 3, &fresh), DAC_OK);
    ck_assert_uint_gt(atomic_load(&shm.slots[fresh].generation),
                      atomic_load(&shm.slots[old].generation));
    slot_sweep(&shm, old);
    ck_assert_uint_eq(atomic_load(&shm.hdr->ordinal_slot[3]), fresh);
    slot_sweep(&shm, fresh);
    ck_assert_uint_eq(atomic_load(&shm.hdr->ordinal_slot[3]), SHM_NO_SLOT);
}
END_TEST

START_TEST(accepting_while_ready_and_beating)
{
    slot_enter(&shm, 1000);
    ck_assert_uint_eq(atomic_load(&shm.slots[a].pid), (uint32_t)getpid());
    ck_assert(!slot_accepting(&shm, a, 1000, 100)); /* STARTING */
    slot_set_state(&shm, SLOT_READY);
    ck_assert(slot_accepting(&shm, a, 1000, 100));
    ck_assert(slot_accepting(&shm, a, 1099, 100));
    ck_assert(!slot_accepting(&shm, a, 1101, 100));
    slot_beat(&shm, 1100);
    ck_assert_uint_eq(atomic_load(&shm.slots[a].heartbeat), 2);
    ck_assert(slot_accepting(&shm, a, 1101, 100));
    slot_set_state(&shm, SLOT_DRAINING);
    ck_assert(!slot_accepting(&shm, a, 1101, 100));
    ck_assert_int_eq(slot_state(&shm, SHM_NO_SLOT), SLOT_FREE);
    ck_assert(!slot_accepting(&shm, SHM_NO_SLOT, 0, 100));
}
END_TEST

/* --- sweeping ----------------------------------------------------------------------- */

/* In whatever state its owner died, nobody owns the flight afterwards. */
static const struct {
    enum flight_state died_in;
    bool indexed;
    enum flight_state after;
} deaths[] = {
    {FLIGHT_CLAIMED, false, FLIGHT_FREE},      {FLIGHT_CLAIMED, true, FLIGHT_ORPHANED},
    {FLIGHT_QUEUED, true, FLIGHT_ORPHANED},    {FLIGHT_FETCHING, true, FLIGHT_ORPHANED},
    {FLIGHT_STREAMING, true, FLIGHT_ORPHANED}, {FLIGHT_DONE, true, FLIGHT_DONE},
    {FLIGHT_FAILED, true, FLIGHT_FAILED},      {FLIGHT_CANCELLED, true, FLIGHT_CANCELLED},
};

START_TEST(owners_death_in_every_state)
{
    enum flight_state s = deaths[_i].died_in;
    bool ends = flight_state_ended(s);
    struct join_result r = lead(1, b);
    uint32_t recorder;

    ck_assert_int_eq(slot_take(&shm, SLOT_RECORDER, 0, &recorder), DAC_OK);
    if (deaths[_i].indexed)
        follow(1, a);
    shm.self = b;
    if (ends) {
        ck_assert_int_eq(flight_advance(&shm, r.ref, FLIGHT_QUEUED), DAC_OK);
        ck_assert_int_eq(flight_advance(&shm, r.ref, FLIGHT_FETCHING), DAC_OK);
        end_flight(&r.ref, &r.writer, s, 5);
    }
    for (enum flight_state to = FLIGHT_QUEUED; !ends && to <= s; to++)
        ck_assert_int_eq(flight_advance(&shm, r.ref, to), DAC_OK);
    if (!deaths[_i].indexed) { /* as it is before it is linked */
        atomic_store(&flight_at(&shm, r.ref.index)->bucket, 0);
        index_rebuild(&shm, 1);
    }
    take_bits(a);
    readable(a);
    shm.self = SHM_NO_SLOT;
    uint64_t before_ns = clock_now_ns();
    struct slot_sweep found = slot_sweep(&shm, b);

    /* It lost its owner, or a reader: how long ago is known. */
    ck_assert_int_eq(atomic_load(&flight_at(&shm, r.ref.index)->lost_ns) >= before_ns,
                     deaths[_i].after != FLIGHT_FREE);
    struct flight_word w = flight_load(&shm, r.ref.index);
    bool orphaned = deaths[_i].after == FLIGHT_ORPHANED;
    bool freed = deaths[_i].after == FLIGHT_FREE;
    ck_assert_int_eq(w.state, deaths[_i].after);
    ck_assert_uint_eq(w.owner, SHM_NO_SLOT);
    ck_assert_uint_eq(w.incarnation, r.ref.incarnation + freed);
    ck_assert_uint_eq(found.orphaned, orphaned);
    ck_assert_uint_eq(found.freed, freed);
    ck_assert_uint_eq(found.reader_of, !freed);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_flights_orphaned), orphaned);
    ck_assert_uint_eq(flight_readers(&shm, r.ref.index), freed ? 0 : UINT64_C(1) << a);
    /* Its readers and the recorder hear of it. */
    ck_assert_uint_eq(take_bits(a), orphaned);
    ck_assert_int_eq(readable(a), orphaned);
    ck_assert_uint_eq(take_bits(recorder), orphaned);
    ck_assert_uint_eq(blocks_in_use(), !freed);
    ck_assert_int_eq(slot_state(&shm, b), SLOT_FREE);
    assert_all_valid();
}
END_TEST

/* A dead reader leaves; the owner hears of the last one. */
START_TEST(readers_death_tells_the_owner)
{
    struct join_result r = lead(1, a);
    uint32_t c = new_worker();

    follow(1, b);
    follow(1, c);
    shm.self = a;
    flight_drop_reader(&shm, r.ref.index);
    take_bits(a);
    shm.self = SHM_NO_SLOT;
    ck_assert_uint_eq(slot_sweep(&shm, b).reader_of, 1);
    ck_assert_uint_eq(take_bits(a), 0);
    shm.self = SHM_NO_SLOT;
    ck_assert_uint_eq(slot_sweep(&shm, c).reader_of, 1);
    ck_assert_uint_eq(take_bits(a), 1);
    ck_assert_uint_eq(taken, r.ref.index);
    ck_assert_uint_eq(flight_readers(&shm, r.ref.index), 0);
}
END_TEST

START_TEST(sweep_leaves_nothing_of_the_dead_to_the_next)
{
    uint64_t wait;
    uint32_t permit, again;
    struct join_result r = lead(1, b);

    ck_assert_int_eq(pacer_take(&shm, 0, r.ref, NS_PER_S, &permit, &wait), DAC_OK);
    shm_count(&shm, SHM_C_requests, 7);
    slot_enter(&shm, 99);
    atomic_store(&shm.slots[b].connections, 5);
    atomic_store(&shm.slots[b].streams, 4);
    atomic_store(&shm.slots[b].locking_bucket, 3);
    shm.self = a;
    shm_count(&shm, SHM_C_requests, 1);
    wake_slot(&shm, b, 129);
    wake_pacer(&shm, b, 0);
    struct slot_sweep found = slot_sweep(&shm, b);
    ck_assert(found.held_lock);
    ck_assert_uint_eq(found.permits, 1);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_requests), 8);
    ck_assert_uint_eq(atomic_load(&shm.slots[b].counters[SHM_C_requests]), 7);
    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, 0, &again), DAC_OK);
    ck_assert_uint_eq(again, b);
    const struct shm_slot *s = &shm.slots[b];
    ck_assert_uint_eq(atomic_load(&s->connections), 0);
    ck_assert_uint_eq(atomic_load(&s->streams), 0);
    ck_assert_uint_eq(atomic_load(&s->heartbeat), 0);
    ck_assert_uint_eq(atomic_load(&s->pid), 0);
    ck_assert_uint_eq(atomic_load(&s->notified), 0);
    ck_assert_uint_eq(atomic_load(&s->locking_bucket), 0);
    ck_assert_uint_eq(take_bits(b), 0);
    ck_assert_uint_eq(wake_take_pacers(&shm), 0);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_requests), 8);
    shm.self = b; /* goes on with them */
    shm_count(&shm, SHM_C_requests, 1);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_requests), 9);
    shm.self = SHM_NO_SLOT;
    ck_assert(!slot_sweep(&shm, b).held_lock);
    assert_all_valid();
}
END_TEST

START_TEST(recount_mends_the_hints)
{
    struct join_result r = lead(1, a);
    static const char piece[1800];

    lead(2, b);
    shm.self = a;
    ck_assert_int_eq(blocklog_append(&shm, &r.writer, RECORD_DELTA, piece, sizeof(piece)),
                     DAC_OK);
    ck_assert_int_eq(blocklog_append(&shm, &r.writer, RECORD_DELTA, piece, sizeof(piece)),
                     DAC_OK);
    ck_assert_uint_eq(atomic_load(&shm.hdr->flights_used), 2);
    ck_assert_uint_eq(atomic_load(&shm.hdr->blocks_used), blocks_in_use());
    atomic_store(&shm.hdr->flights_used, 77);
    atomic_store(&shm.hdr->blocks_used, UINT32_MAX);
    slot_recount(&shm);
    ck_assert_uint_eq(atomic_load(&shm.hdr->flights_used), 2);
    ck_assert_uint_eq(atomic_load(&shm.hdr->blocks_used), blocks_in_use());
}
END_TEST

START_TEST(valid_says_what_is_wrong)
{
    struct shm_slot *s = &shm.slots[9];
    char why[160];

    ck_assert(slot_valid(&shm, 9, why, sizeof(why)));
    atomic_store(&s->state, SLOT_DEAD + 1);
    ck_assert(!slot_valid(&shm, 9, why, sizeof(why)));
    atomic_store(&s->state, SLOT_READY); /* of no kind */
    ck_assert(!slot_valid(&shm, 9, why, sizeof(why)));
    atomic_store(&s->kind, SLOT_WORKER);
    ck_assert(slot_valid(&shm, 9, why, sizeof(why)));
    atomic_store(&s->locking_bucket, shm.hdr->bucket_count);
    ck_assert(slot_valid(&shm, 9, why, sizeof(why)));
    atomic_store(&s->locking_bucket, shm.hdr->bucket_count + 1);
    ck_assert(!slot_valid(&shm, 9, why, sizeof(why)));
    atomic_store(&s->locking_bucket, 0);
    atomic_store(&s->pid, 5);
    atomic_store(&s->state, SLOT_FREE);
    ck_assert(!slot_valid(&shm, 9, why, sizeof(why)));
}
END_TEST

/* --- waking ------------------------------------------------------------------------- */

START_TEST(one_write_until_the_sleeper_looks)
{
    static const uint32_t flights[] = {0, 63, 64, 127, 128, 129};

    for (size_t i = 0; i < DAC_ARRAY_LEN(flights); i++) {
        wake_slot(&shm, b, flights[i]);
        ck_assert_uint_eq(atomic_load(&shm.slots[b].notified), 1);
        ck_assert_int_eq(readable(b), i == 0);
    }
    shm.self = b;
    wake_begin(&shm);
    ck_assert_uint_eq(atomic_load(&shm.slots[b].notified), 0);
    /* What comes between the two steps is a new wake-up and is seen as well. */
    shm.self = a;
    wake_slot(&shm, b, 5);
    ck_assert_uint_eq(take_bits(b), DAC_ARRAY_LEN(flights) + 1);
    ck_assert_uint_eq(take_bits(b), 0);
    ck_assert(readable(b));
}
END_TEST

START_TEST(a_sleeper_that_was_never_written_to_still_looks)
{
    wake_slot(&shm, b, 7);
    readable(b); /* the writer died before it wrote, so to speak */
    shm.self = b;
    wake_begin(&shm);
    ck_assert_uint_eq(take_bits(b), 1);
    ck_assert_uint_eq(taken, 7);
    shm.self = a;
    wake_slot(&shm, b, 7); /* and from here on it is written to again */
    ck_assert(readable(b));
}
END_TEST

START_TEST(readers_owner_and_recorder_are_told)
{
    struct join_result r = lead(1, a);
    uint32_t c = new_worker();
    uint32_t recorder;

    follow(1, b);
    shm.self = a;
    wake_readers(&shm, r.ref.index);
    ck_assert_uint_eq(take_bits(a), 0); /* not oneself */
    ck_assert_uint_eq(take_bits(b), 1);
    ck_assert_uint_eq(taken, r.ref.index);
    ck_assert_uint_eq(take_bits(c), 0);
    wake_owner(&shm, r.ref.index);
    ck_assert_uint_eq(take_bits(a), 1);
    wake_owner(&shm, r.ref.index);
    ck_assert_uint_eq(take_bits(a), 0);
    wake_recorder(&shm, r.ref.index); /* there is none: nothing happens */
    ck_assert_int_eq(slot_take(&shm, SLOT_RECORDER, 0, &recorder), DAC_OK);
    wake_recorder(&shm, r.ref.index);
    ck_assert_uint_eq(take_bits(recorder), 1);
}
END_TEST

START_TEST(kick_wakes_everyone_whatever_the_flags_say)
{
    wake_slot(&shm, b, 7);
    for (uint32_t i = 0; i < SHM_SLOTS; i++)
        readable(i);
    uint32_t before = atomic_load(&shm.hdr->kicks);
    shm.self = SHM_NO_SLOT;
    wake_kick(&shm);
    ck_assert_uint_eq(atomic_load(&shm.hdr->kicks), before + 1);
    for (uint32_t i = 0; i < SHM_SLOTS; i++)
        ck_assert(readable(i));
}
END_TEST

/* The counter of an eventfd that nobody reads: the waker must not block. */
START_TEST(full_eventfd_does_not_block)
{
    uint64_t full = UINT64_MAX - 1;

    ck_assert_int_eq(write(shm.eventfd[b], &full, sizeof(full)), sizeof(full));
    wake_slot(&shm, b, 7);
    wake_kick(&shm);
    ck_assert(readable(b));
    ck_assert_uint_eq(take_bits(b), 1);
}
END_TEST

/* In a copy of a segment there is nobody to write to. */
START_TEST(without_eventfds_only_the_words_change)
{
    int fd = shm.eventfd[b];

    shm.eventfd[b] = -1;
    wake_slot(&shm, b, 7);
    wake_kick(&shm);
    shm.eventfd[b] = fd;
    ck_assert(!readable(b));
    ck_assert_uint_eq(atomic_load(&shm.slots[b].notified), 1);
    ck_assert_uint_eq(take_bits(b), 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("slots");
    TCase *t = tcase_create("slots");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, slots_run_out_and_come_back);
    tcase_add_test(t, ordinal_belongs_to_the_newest);
    tcase_add_test(t, accepting_while_ready_and_beating);
    tcase_add_loop_test(t, owners_death_in_every_state, 0, DAC_ARRAY_LEN(deaths));
    tcase_add_test(t, readers_death_tells_the_owner);
    tcase_add_test(t, sweep_leaves_nothing_of_the_dead_to_the_next);
    tcase_add_test(t, recount_mends_the_hints);
    tcase_add_test(t, valid_says_what_is_wrong);
    tcase_add_test(t, one_write_until_the_sleeper_looks);
    tcase_add_test(t, a_sleeper_that_was_never_written_to_still_looks);
    tcase_add_test(t, readers_owner_and_recorder_are_told);
    tcase_add_test(t, kick_wakes_everyone_whatever_the_flags_say);
    tcase_add_test(t, full_eventfd_does_not_block);
    tcase_add_test(t, without_eventfds_only_the_words_change);
    suite_add_tcase(s, t);
    return run_suite(s);
}
