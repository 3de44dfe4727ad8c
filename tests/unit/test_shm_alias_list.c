/*
 * Aliases: what the dead leave, locks that are lost, a flight's list, and what it keeps
 * in memory. One process plays several slots.
 */
#include <errno.h>
#include <signal.h>

#include "tests/unit/alias_fixture.h"

/* --- the dead ----------------------------------------------------------------------- */

enum died { CLAIMED, AIMED, PUSHED, DEATHS };

static uint32_t die_binding(enum died how, uint32_t n, struct flight_ref ref)
{
    uint32_t alias;

    ck_assert_int_eq(claim(n, &alias), DAC_OK);
    if (how >= AIMED)
        atomic_store(&alias_at(&shm, alias)->target, alias_use(ref));
    if (how == PUSHED)
        alias_push(&shm, alias, ref);
    return alias;
}

/* `again`: another process is in the slot already. */
static void check_death(enum died how, bool again)
{
    struct join_result r = lead(3);
    uint32_t slot;

    shm.self = b;
    flight_at(&shm, r.ref.index)->readers |= UINT64_C(1) << b;
    die_binding(how, 5, r.ref);
    shm.self = a;
    ck_assert_int_eq(find(5), DAC_E_BUSY); /* not reaped yet */
    slot_sweep(&shm, b);
    if (again) {
        slot = new_worker();
        ck_assert_uint_eq(slot, b);
    }
    assert_all_valid();
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), how == PUSHED);
    if (how == PUSHED)
        assert_found(5, r.ref);
    else
        ck_assert_int_eq(find(5), DAC_E_NOT_FOUND);
    assert_all_valid();
    if (how != PUSHED) {
        bind(5, r.ref);
        assert_found(5, r.ref);
    }
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), 1);
    end_and_free(&r);
    ck_assert_int_eq(find(5), DAC_E_NOT_FOUND);
    assert_all_valid();
}

START_TEST(dead_binder)
{
    check_death((enum died)_i, false);
}
END_TEST

START_TEST(dead_binder_with_a_successor)
{
    check_death((enum died)_i, true);
}
END_TEST

/* What it had pushed is bound, and it is not taken from the pool. */
START_TEST(pool_completes_what_a_dead_one_bound)
{
    struct join_result r = lead(3);

    shm.self = b;
    uint32_t alias = die_binding(PUSHED, 5, r.ref);
    shm.self = a;
    slot_sweep(&shm, b);
    atomic_store(&shm.hdr->alias_hand, alias);
    ck_assert_uint_ne(bind(90, r.ref), alias);
    ck_assert_uint_eq(atomic_load(&alias_at(&shm, alias)->word), alias_use(r.ref));
    assert_found(5, r.ref);
    assert_all_valid();
}
END_TEST

/* Its flight has gone since: nobody has looked at it before. */
START_TEST(what_a_dead_one_bound_goes_with_its_flight)
{
    struct join_result r = lead(3), next;

    shm.self = b;
    uint32_t alias = die_binding(PUSHED, 5, r.ref);
    shm.self = a;
    slot_sweep(&shm, b);
    end_and_free(&r);
    atomic_store(&shm.hdr->flight_hand, r.ref.index);
    next = lead(4);
    ck_assert_uint_eq(next.ref.index, r.ref.index);
    assert_all_valid();
    ck_assert_int_eq(find(5), DAC_E_NOT_FOUND);
    atomic_store(&shm.hdr->alias_hand, alias);
    ck_assert_uint_eq(bind(90, next.ref), alias);
    assert_all_valid();
}
END_TEST

/* It had taken one from the pool and not shown it to anybody. */
START_TEST(taken_by_a_dead_one_and_not_chained)
{
    struct join_result r = lead(3);
    uint32_t alias;

    shm.self = b;
    ck_assert_int_eq(claim(5, &alias), DAC_OK);
    atomic_store(&shm.buckets[bucket_of(5)].aliases, 0);
    atomic_store(&alias_at(&shm, alias)->bucket, 0);
    shm.self = a;
    atomic_store(&shm.hdr->alias_hand, alias);
    ck_assert_uint_ne(bind(6, r.ref), alias);
    slot_sweep(&shm, b);
    atomic_store(&shm.hdr->alias_hand, alias);
    ck_assert_uint_eq(bind(7, r.ref), alias);
    assert_all_valid();
}
END_TEST

/* --- locks that are lost ------------------------------------------------------------ */

static void lose_lock(uint32_t bucket)
{
    pthread_mutex_t *m = &shm.buckets[bucket].lock;
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        if (pthread_mutex_lock(m) == 0)
            raise(SIGKILL);
        _exit(1);
    }
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    ck_assert_int_eq(pthread_mutex_lock(m), EOWNERDEAD);
    ck_assert_int_eq(pthread_mutex_unlock(m), 0);
}

/* Nobody finds or claims there; what is bound is stored and leaves all the same, and what
 * is free there is left alone. */
START_TEST(lost_bucket)
{
    struct join_result r = lead(3), other = lead(9);
    uint32_t old = bind(5, r.ref), claimed, alias;

    ck_assert_int_eq(claim(5 + stride(), &claimed), DAC_OK);
    lose_lock(bucket_of(5));
    ck_assert_int_eq(find(5), DAC_E_BUSY);
    ck_assert_uint_eq(atomic_load(&shm.hdr->lock_lost), 1);
    ck_assert_int_eq(find(5), DAC_E_BUSY);
    ck_assert_int_eq(claim(5, &alias), DAC_E_BUSY);
    ck_assert_int_eq(claim(5 + 2 * stride(), &alias), DAC_E_BUSY);
    alias_bind(&shm, claimed, r.ref); /* it came in before, and needs no lock now */
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), 2);
    bind(50, r.ref);
    end_and_free(&r);
    for (uint32_t i = 0; i < shm.hdr->alias_count - 2; i++)
        bind(100000 + i * stride() + 21, other.ref);
    ck_assert_uint_ne(atomic_load(&alias_at(&shm, old)->bucket), 0);
    ck_assert_int_eq(claim(51, &alias), DAC_E_FULL);
    assert_all_valid();
}
END_TEST

/* Who died with the lock left both chains half changed. */
START_TEST(both_chains_are_mended)
{
    struct join_result r[4];
    uint32_t alias[4];
    int status;

    three_names_of_bucket_5(r, alias);
    struct join_request req = question(5);
    struct join_result here, again;
    ck_assert_int_eq(index_join(&shm, &req, &here), DAC_OK);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        if (pthread_mutex_lock(&shm.buckets[5].lock) != 0)
            _exit(1);
        damage(LINK_LOST, alias);
        atomic_store(&shm.buckets[5].head, 0);
        raise(SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status));
    assert_found(4, r[0].ref);
    req = question(5);
    ck_assert_int_eq(index_join(&shm, &req, &again), DAC_OK);
    ck_assert_uint_eq(again.ref.index, here.ref.index);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 1);
    assert_all_valid();
}
END_TEST

/* --- a flight's list ---------------------------------------------------------------- */

START_TEST(list_is_walked_from_the_newest)
{
    struct join_result r = lead(3);
    struct alias_walk walk;
    struct alias_key key;
    uint8_t body[32];
    int64_t created;
    uint32_t at;

    walk = alias_walk(&shm, r.ref.index);
    ck_assert(!alias_walk_next(&shm, &walk, &at));
    for (uint32_t i = 0; i < 3; i++)
        bind(i, r.ref);
    walk = alias_walk(&shm, r.ref.index);
    bind(3, r.ref); /* too late for this walk */
    for (uint32_t i = 0; i < 3; i++) {
        struct alias_key want = name_of(0, 2 - i);
        ck_assert(alias_walk_next(&shm, &walk, &at));
        alias_read(&shm, at, &key, body, &created);
        ck_assert_int_eq(memcmp(&key, &want, sizeof(key)), 0);
        ck_assert_int_eq(memcmp(body, body_of(2 - i), sizeof(body)), 0);
        ck_assert_int_eq(created, CREATED_US);
        alias_read(&shm, at, NULL, NULL, NULL);
    }
    ck_assert(!alias_walk_next(&shm, &walk, &at));
    ck_assert(!alias_walk_next(&shm, &walk, &at));
}
END_TEST

START_TEST(flight_stays_until_its_names_are_stored)
{
    struct join_result r = lead(3);
    uint32_t first = bind(5, r.ref), late;

    bind(6, r.ref);
    end(&r, FLIGHT_FAILED, clock_now_ns());
    atomic_store(&flight_at(&shm, r.ref.index)->stored, STORED_SQLITE);
    ck_assert(alias_pending(&shm, r.ref.index));
    ck_assert_int_eq(recycle(r.ref), DAC_E_STATE);
    alias_set_stored(&shm, first);
    ck_assert(alias_is_stored(&shm, first));
    ck_assert_int_eq(recycle(r.ref), DAC_E_STATE); /* marked, not counted */
    ck_assert_uint_eq(alias_count_stored(&shm, r.ref.index), 1);
    ck_assert_int_eq(recycle(r.ref), DAC_E_STATE);
    store(&r);
    ck_assert(!alias_pending(&shm, r.ref.index));
    late = bind(7, r.ref);
    ck_assert(!alias_is_stored(&shm, late));
    ck_assert_int_eq(recycle(r.ref), DAC_E_STATE);
    assert_all_valid();
    store(&r);
    ck_assert_int_eq(recycle(r.ref), DAC_OK);
    ck_assert_int_eq(find(7), DAC_E_NOT_FOUND);
}
END_TEST

#define END_NS (100 * NS_PER_S)

static const struct {
    enum flight_state state;
    bool named;
    enum recycle_rule rule;
    uint64_t later_ns;
    bool leaves;
} leaving[] = {
    {FLIGHT_CANCELLED, false, RECYCLE_EXPIRED, 0, true},
    {FLIGHT_CANCELLED, true, RECYCLE_EXPIRED, 0, false},
    {FLIGHT_CANCELLED, true, RECYCLE_EXPIRED, ALIAS_LINGER_NS - 1, false},
    {FLIGHT_CANCELLED, true, RECYCLE_EXPIRED, ALIAS_LINGER_NS, true},
    {FLIGHT_CANCELLED, true, RECYCLE_PRESSURE, 0, true},
    {FLIGHT_FAILED, true, RECYCLE_EXPIRED, ALIAS_LINGER_NS - 1, false},
    {FLIGHT_FAILED, true, RECYCLE_EXPIRED, ALIAS_LINGER_NS, true},
    {FLIGHT_DONE, true, RECYCLE_EXPIRED, ALIAS_LINGER_NS, false},
    {FLIGHT_DONE, true, RECYCLE_EXPIRED, 30 * NS_PER_S, true}, /* its own TTL */
    {FLIGHT_DONE, true, RECYCLE_PRESSURE, 0, true},
};

START_TEST(named_flight_lingers)
{
    struct join_result r = lead(3);
    uint64_t followers, hits;

    if (leaving[_i].named)
        bind(5, r.ref);
    end(&r, leaving[_i].state, END_NS);
    store(&r);
    ck_assert_int_eq(index_recycle(&shm, r.ref, leaving[_i].rule,
                                   END_NS + leaving[_i].later_ns, NS_PER_S, &followers,
                                   &hits),
                     leaving[_i].leaves ? DAC_OK : DAC_E_STATE);
}
END_TEST

/* A recorder died between unlinking the flight and freeing it. */
START_TEST(unlinked_flight_says_what_leaves)
{
    struct join_result r = lead(3);
    struct alias_key key = name_of(0, 5);
    uint32_t gone = alias_gone(&shm, &key);

    bind(5, r.ref);
    end(&r, FLIGHT_FAILED, clock_now_ns());
    store(&r);
    uint32_t bucket = atomic_load(&flight_at(&shm, r.ref.index)->bucket) - 1;
    atomic_store(&shm.buckets[bucket].head, 0);
    atomic_store(&flight_at(&shm, r.ref.index)->bucket, 0);
    assert_found(5, r.ref);
    ck_assert_int_eq(recycle(r.ref), DAC_OK);
    ck_assert_uint_eq(alias_gone(&shm, &key), gone + 1);
    ck_assert_uint_eq(alias_used_hint(&shm), 0);
}
END_TEST

/* Binding to what ended already is news to the recorder, before that it is not. */
START_TEST(late_binding_wakes_the_recorder)
{
    struct join_result r = lead(3);

    slot_set_state(&shm, SLOT_READY);
    shm.self = recorder;
    wake_begin(&shm);
    shm.self = a;
    bind(5, r.ref);
    ck_assert_uint_eq(atomic_load(&shm.slots[recorder].notified), 0);
    end_flight(&r.ref, &r.writer, FLIGHT_FAILED, clock_now_ns());
    ck_assert_uint_eq(atomic_load(&shm.slots[recorder].notified), 0);
    bind(6, r.ref);
    ck_assert_uint_eq(atomic_load(&shm.slots[recorder].notified), 1);
}
END_TEST

START_TEST(hint_is_counted_anew)
{
    struct join_result r = lead(3);

    bind(5, r.ref);
    bind(6, r.ref);
    atomic_store(&shm.hdr->aliases_used, UINT32_MAX);
    ck_assert_uint_eq(alias_used_hint(&shm), 0);
    slot_recount(&shm);
    ck_assert_uint_eq(alias_used_hint(&shm), 2);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("aliases, deaths and lists");
    TCase *t = tcase_create("aliases");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 20);
    tcase_add_loop_test(t, dead_binder, 0, DEATHS);
    tcase_add_loop_test(t, dead_binder_with_a_successor, 0, DEATHS);
    tcase_add_test(t, pool_completes_what_a_dead_one_bound);
    tcase_add_test(t, what_a_dead_one_bound_goes_with_its_flight);
    tcase_add_test(t, taken_by_a_dead_one_and_not_chained);
    tcase_add_test(t, lost_bucket);
    tcase_add_test(t, both_chains_are_mended);
    tcase_add_test(t, list_is_walked_from_the_newest);
    tcase_add_test(t, flight_stays_until_its_names_are_stored);
    tcase_add_loop_test(t, named_flight_lingers, 0, DAC_ARRAY_LEN(leaving));
    tcase_add_test(t, unlinked_flight_says_what_leaves);
    tcase_add_test(t, late_binding_wakes_the_recorder);
    tcase_add_test(t, hint_is_counted_anew);
    suite_add_tcase(s, t);
    return run_suite(s);
}
