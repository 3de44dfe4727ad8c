/*
 * Aliases: finding, claiming, binding and dropping them; chains, also broken ones; what
 * becomes free by itself; a full pool; replacing. One process plays several slots.
 */
#include "tests/unit/alias_fixture.h"

/* --- claiming and binding ----------------------------------------------------------- */

START_TEST(bound_from_bind_on)
{
    struct join_result r = lead(3);
    struct alias_key same_name = name_of(1, 5);
    struct alias_found found;
    uint32_t alias, second;

    ck_assert_int_eq(find(5), DAC_E_NOT_FOUND);
    ck_assert_int_eq(claim(5, &alias), DAC_OK);
    shm.self = b;
    ck_assert_int_eq(find(5), DAC_E_BUSY);
    ck_assert_int_eq(claim(5, &second), DAC_E_BUSY);
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), 0);
    shm.self = a;
    alias_bind(&shm, alias, r.ref);
    shm.self = b;
    assert_found(5, r.ref);
    ck_assert_int_eq(claim(5, &second), DAC_E_EXISTS);
    ck_assert_int_eq(alias_find(&shm, &same_name, &found), DAC_E_NOT_FOUND);
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), 1);
    ck_assert_uint_eq(alias_used(&shm), 1);
    ck_assert_uint_eq(alias_used_hint(&shm), 1);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_idempotency_keys_bound), 1);
    assert_all_valid();
}
END_TEST

START_TEST(what_exists_is_described)
{
    struct join_result r = lead(3);
    struct alias_key key = name_of(0, 5);
    struct alias_found found = {.created_us = 0};
    uint32_t alias;

    bind(5, r.ref);
    shm.self = b;
    ck_assert_int_eq(alias_claim(&shm, &key, body_of(9), 99, NULL, &alias, &found),
                     DAC_E_EXISTS);
    ck_assert_uint_eq(alias_use(found.ref), alias_use(r.ref));
    ck_assert_int_eq(memcmp(found.body, body_of(5), sizeof(found.body)), 0);
    ck_assert_int_eq(found.created_us, CREATED_US);
    assert_found(5, r.ref);
}
END_TEST

START_TEST(dropped_is_free)
{
    uint32_t alias;

    ck_assert_int_eq(claim(5, &alias), DAC_OK);
    alias_drop(&shm, alias);
    assert_all_valid();
    shm.self = b;
    ck_assert_int_eq(find(5), DAC_E_NOT_FOUND);
    ck_assert_uint_eq(atomic_load(&shm.buckets[bucket_of(5)].aliases), 0);
    ck_assert_uint_eq(atomic_load(&alias_at(&shm, alias)->word), 0);
    ck_assert_int_eq(claim(5, &alias), DAC_OK);
    ck_assert_int_eq(find(5), DAC_E_BUSY);
    alias_drop(&shm, alias);
    assert_all_valid();
}
END_TEST

START_TEST(many_names_of_one_turn)
{
    struct join_result r = lead(3), other = lead(4);

    for (uint32_t i = 0; i < 10; i++)
        bind(i, r.ref);
    bind(10, other.ref);
    for (uint32_t i = 0; i < 10; i++)
        assert_found(i, r.ref);
    assert_found(10, other.ref);
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), 10);
    ck_assert_uint_eq(alias_count(&shm, other.ref.index), 1);
    assert_all_valid();
}
END_TEST

/* --- chains ------------------------------------------------------------------------- */

START_TEST(names_of_one_bucket_stay_apart)
{
    struct join_result r[4];

    for (uint32_t i = 0; i < 4; i++) {
        r[i] = lead(i);
        bind(5 + i * stride(), r[i].ref);
    }
    ck_assert_uint_eq(bucket_of(5), bucket_of(5 + 3 * stride()));
    for (uint32_t i = 0; i < 4; i++)
        assert_found(5 + i * stride(), r[i].ref);
    ck_assert_int_eq(find(5 + 4 * stride()), DAC_E_NOT_FOUND);
    assert_all_valid();
}
END_TEST

/* From the head, the middle and the end of the chain, by somebody who comes by. */
START_TEST(free_with_its_flight)
{
    struct join_result r[4];
    struct alias_key key = name_of(0, 5 + (uint32_t)_i * stride());
    uint32_t gone = alias_gone(&shm, &key);

    for (uint32_t i = 0; i < 4; i++) {
        r[i] = lead(i);
        bind(5 + i * stride(), r[i].ref);
    }
    ck_assert_uint_eq(alias_gone(&shm, &key), gone);
    end_and_free(&r[_i]);
    ck_assert_uint_eq(alias_gone(&shm, &key), gone + 1);
    ck_assert_uint_eq(alias_used(&shm), 3);
    ck_assert_uint_eq(alias_used_hint(&shm), 3);
    assert_all_valid();
    shm.self = b;
    for (uint32_t i = 0; i < 4; i++) {
        if (i != (uint32_t)_i)
            assert_found(5 + i * stride(), r[i].ref);
    }
    ck_assert_int_eq(find(5 + (uint32_t)_i * stride()), DAC_E_NOT_FOUND);
    /* The newest is at the head: the whole chain was walked. */
    uint32_t chained = 0;
    for (uint32_t i = 0; i < shm.hdr->alias_count; i++)
        chained += atomic_load(&alias_at(&shm, i)->bucket) != 0;
    ck_assert_uint_eq(chained, 3);
    assert_all_valid();
}
END_TEST

/* The next use of the same flight is another one. */
START_TEST(use_that_is_over_binds_nothing)
{
    struct join_result r = lead(3), next;
    struct flight_ref old = r.ref;

    bind(5, r.ref);
    end_and_free(&r);
    atomic_store(&shm.hdr->flight_hand, old.index);
    next = lead(4);
    ck_assert_uint_eq(next.ref.index, old.index);
    ck_assert_uint_eq(alias_count(&shm, next.ref.index), 0);
    ck_assert_int_eq(find(5), DAC_E_NOT_FOUND);
    bind(5, next.ref);
    assert_found(5, next.ref);
    assert_all_valid();
}
END_TEST

static bool chains_are_valid(char *why, size_t n)
{
    for (uint32_t i = 0; i < shm.hdr->bucket_count; i++) {
        if (!alias_chain_valid(&shm, i, why, n))
            return false;
    }
    for (uint32_t i = 0; i < shm.hdr->alias_count; i++) {
        snprintf(why, n, "alias %u is not in its chain", i);
        if (!alias_is_chained(&shm, i) || !alias_valid(&shm, i, true, why, n))
            return false;
    }
    return true;
}

START_TEST(rebuilt_from_the_aliases_themselves)
{
    struct join_result r[4];
    uint32_t alias[4];
    char why[160] = "";

    three_names_of_bucket_5(r, alias);
    damage((enum damage)_i, alias);
    ck_assert(!chains_are_valid(why, sizeof(why)));
    ck_assert_str_ne(why, "");
    alias_rebuild(&shm, 5);
    ck_assert_msg(chains_are_valid(why, sizeof(why)), "%s", why);
    for (uint32_t i = 0; i < 3; i++)
        assert_found(4 + i * stride(), r[i].ref);
    assert_found(19, r[3].ref);
}
END_TEST

/* Nobody runs in a circle under the lock, and who is led astray mends the chain. */
START_TEST(broken_chain_is_survived)
{
    struct join_result r[4];
    uint32_t alias[4];
    char why[160] = "";

    three_names_of_bucket_5(r, alias);
    damage((enum damage)_i, alias);
    ck_assert_int_eq(find(4 + 7 * stride()), DAC_E_NOT_FOUND);
    uint32_t fresh = bind(4 + 8 * stride(), r[3].ref);
    assert_found(4 + 8 * stride(), r[3].ref);
    (void)fresh;
    if (_i == CIRCLE || _i == FOREIGN) {
        ck_assert_msg(chains_are_valid(why, sizeof(why)), "%s", why);
        assert_found(4, r[0].ref);
    }
}
END_TEST

/* It is to be freed, but its chain does not lead to it. */
START_TEST(taken_from_a_broken_chain)
{
    struct join_result r = lead(3), other = lead(4);
    uint32_t alias = bind(4, r.ref);
    char why[160] = "";

    end_and_free(&r);
    atomic_store(&shm.buckets[5].aliases, 0);
    atomic_store(&shm.hdr->alias_hand, alias);
    ck_assert_uint_ne(bind(90, other.ref), alias); /* mended, and left alone */
    ck_assert_msg(chains_are_valid(why, sizeof(why)), "%s", why);
    atomic_store(&shm.hdr->alias_hand, alias);
    ck_assert_uint_eq(bind(91, other.ref), alias);
    ck_assert_msg(chains_are_valid(why, sizeof(why)), "%s", why);
}
END_TEST

/* --- the pool ----------------------------------------------------------------------- */

static uint32_t fill(struct flight_ref ref)
{
    uint32_t n = shm.hdr->alias_count;

    for (uint32_t i = 0; i < n; i++)
        bind(100 + i, ref);
    return n;
}

START_TEST(full_pool_asks_for_room)
{
    struct join_result r = lead(3);
    uint32_t n = fill(r.ref), alias;

    ck_assert_uint_eq(alias_used(&shm), n);
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), n);
    atomic_store(&shm.hdr->pressure, 0);
    ck_assert_int_eq(claim(1, &alias), DAC_E_FULL);
    ck_assert_uint_eq(atomic_load(&shm.hdr->pressure), 1);
    ck_assert_int_eq(find(1), DAC_E_NOT_FOUND);
    ck_assert_int_eq(claim(100, &alias), DAC_E_EXISTS); /* it is told all the same */
    assert_all_valid();
    end_and_free(&r);
    ck_assert_uint_eq(alias_used(&shm), 0);
    r = lead(4);
    for (uint32_t i = 0; i < n; i++)
        bind(50000 + i, r.ref);
    ck_assert_int_eq(claim(1, &alias), DAC_E_FULL);
    assert_all_valid();
}
END_TEST

/* What is free stands in another chain: it leaves that one whole. */
START_TEST(taken_from_another_chain)
{
    struct join_result r[4];
    uint32_t alias[4];

    three_names_of_bucket_5(r, alias);
    end_and_free(&r[_i]);
    atomic_store(&shm.hdr->alias_hand, alias[_i]);
    ck_assert_uint_eq(bind(90, r[3].ref), alias[_i]);
    for (uint32_t i = 0; i < 3; i++) {
        if (i != (uint32_t)_i)
            assert_found(4 + i * stride(), r[i].ref);
    }
    assert_found(90, r[3].ref);
    ck_assert_uint_eq(atomic_load(&shm.hdr->alias_hand), alias[_i] + 1);
    assert_all_valid();
}
END_TEST

static void hold(uint32_t bucket)
{
    ck_assert_int_eq(pthread_mutex_lock(&shm.buckets[bucket].lock), 0);
}

static void release(uint32_t bucket)
{
    ck_assert_int_eq(pthread_mutex_unlock(&shm.buckets[bucket].lock), 0);
}

START_TEST(held_lock_is_busy_and_leaks_nothing)
{
    uint32_t alias;
    uint64_t start;

    hold(bucket_of(4));
    start = clock_now_ns();
    ck_assert_int_eq(find(4), DAC_E_BUSY);
    ck_assert_uint_ge(clock_now_ns() - start, BUCKET_LOCK_NS);
    for (uint32_t i = 0; i < 2 * shm.hdr->alias_count; i++)
        ck_assert_int_eq(claim(4, &alias), DAC_E_BUSY);
    ck_assert_int_eq(claim(5, &alias), DAC_OK); /* another bucket's */
    alias_drop(&shm, alias);
    release(bucket_of(4));
    assert_all_valid();
    ck_assert_int_eq(claim(4, &alias), DAC_OK);
}
END_TEST

/* What is free behind a lock that is held is left there; one wait, then what needs none.
 */
START_TEST(pool_waits_for_one_lock_only)
{
    struct join_result r = lead(3), other = lead(4);
    uint32_t alias, first = bind(4, r.ref);

    bind(9, r.ref);
    end_and_free(&r);
    hold(bucket_of(4));
    hold(bucket_of(9));
    atomic_store(&shm.hdr->alias_hand, first);
    uint64_t start = clock_now_ns();
    ck_assert_int_eq(claim(50, &alias), DAC_OK);
    ck_assert_uint_ge(clock_now_ns() - start, BUCKET_LOCK_NS);
    ck_assert_uint_lt(clock_now_ns() - start, 2 * BUCKET_LOCK_NS);
    alias_bind(&shm, alias, other.ref);
    /* Nothing else is free: no room now, but soon. */
    uint32_t n = shm.hdr->alias_count - 3;
    for (uint32_t i = 0; i < n; i++) {
        if (bucket_of(100 + i) != bucket_of(4) && bucket_of(100 + i) != bucket_of(9))
            bind(100 + i, other.ref);
        else
            bind(100000 + i * stride() + 21, other.ref);
    }
    ck_assert_int_eq(claim(51, &alias), DAC_E_BUSY);
    release(bucket_of(4));
    release(bucket_of(9));
    usleep((useconds_t)(BUCKET_BUSY_NS / 1000));
    ck_assert_int_eq(claim(51, &alias), DAC_OK);
    alias_drop(&shm, alias);
    assert_all_valid();
}
END_TEST

/* --- replacing ---------------------------------------------------------------------- */

static enum dac_err replace(uint32_t n, struct flight_ref old, uint32_t *alias)
{
    struct alias_key key = name_of(0, n);
    struct alias_found found;

    return alias_claim(&shm, &key, body_of(n), CREATED_US, &old, alias, &found);
}

START_TEST(exactly_the_named_use_is_replaced)
{
    struct join_result failed = lead(3), other = lead(4);
    struct flight_ref later = {.index = failed.ref.index,
                               .incarnation = failed.ref.incarnation + 1};
    uint32_t old = bind(5, failed.ref), alias;

    bind(5 + stride(), other.ref);
    ck_assert_int_eq(replace(5, other.ref, &alias), DAC_E_EXISTS);
    ck_assert_int_eq(replace(5, later, &alias), DAC_E_EXISTS);
    assert_found(5, failed.ref);
    ck_assert_int_eq(replace(5, failed.ref, &alias), DAC_OK);
    ck_assert_uint_ne(alias, old);
    ck_assert_int_eq(find(5), DAC_E_BUSY);
    alias_bind(&shm, alias, other.ref);
    assert_found(5, other.ref);
    ck_assert_int_eq(replace(5, failed.ref, &alias), DAC_E_EXISTS);
    assert_all_valid();
    /* It is on its list as ever, free with that use and not before. */
    ck_assert_uint_eq(alias_count(&shm, failed.ref.index), 1);
    atomic_store(&shm.hdr->alias_hand, old);
    ck_assert_uint_ne(bind(90, other.ref), old);
    end_and_free(&failed);
    atomic_store(&shm.hdr->alias_hand, old);
    ck_assert_uint_eq(bind(91, other.ref), old);
    assert_found(5, other.ref);
    assert_all_valid();
}
END_TEST

START_TEST(replaced_and_dropped_is_free)
{
    struct join_result failed = lead(3);
    uint32_t alias;

    bind(5, failed.ref);
    ck_assert_int_eq(replace(5, failed.ref, &alias), DAC_OK);
    alias_drop(&shm, alias);
    ck_assert_int_eq(find(5), DAC_E_NOT_FOUND);
    ck_assert_int_eq(replace(5, failed.ref, &alias), DAC_OK); /* nothing to replace */
    assert_all_valid();
}
END_TEST

START_TEST(no_room_to_replace)
{
    struct join_result failed = lead(3), other = lead(4);
    uint32_t alias;

    bind(5, failed.ref);
    bind(6, other.ref);
    for (uint32_t i = 2; i < shm.hdr->alias_count; i++)
        bind(100 + i, other.ref);
    ck_assert_int_eq(replace(5, failed.ref, &alias), DAC_E_FULL);
    assert_found(5, failed.ref);
    ck_assert_int_eq(replace(6, failed.ref, &alias), DAC_E_EXISTS);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("aliases");
    TCase *t = tcase_create("aliases");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 20);
    tcase_add_test(t, bound_from_bind_on);
    tcase_add_test(t, what_exists_is_described);
    tcase_add_test(t, dropped_is_free);
    tcase_add_test(t, many_names_of_one_turn);
    tcase_add_test(t, names_of_one_bucket_stay_apart);
    tcase_add_loop_test(t, free_with_its_flight, 0, 4);
    tcase_add_test(t, use_that_is_over_binds_nothing);
    tcase_add_loop_test(t, rebuilt_from_the_aliases_themselves, 0, DAMAGES);
    tcase_add_loop_test(t, broken_chain_is_survived, 0, DAMAGES);
    tcase_add_test(t, taken_from_a_broken_chain);
    tcase_add_test(t, full_pool_asks_for_room);
    tcase_add_loop_test(t, taken_from_another_chain, 0, 3);
    tcase_add_test(t, held_lock_is_busy_and_leaks_nothing);
    tcase_add_test(t, pool_waits_for_one_lock_only);
    tcase_add_test(t, exactly_the_named_use_is_replaced);
    tcase_add_test(t, replaced_and_dropped_is_free);
    tcase_add_test(t, no_room_to_replace);
    suite_add_tcase(s, t);
    return run_suite(s);
}
