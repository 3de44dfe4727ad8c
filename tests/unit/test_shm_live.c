/*
 * Live values in the header, names of pacers, and workers beside those that serve.
 */
#include <pthread.h>

#include "shm/live.h"
#include "shm/pacer.h"
#include "tests/shm/segment_fixture.h"

static void setup(void)
{
    fixture_open(64);
}

static void teardown(void)
{
    fixture_close();
}

START_TEST(what_is_published_is_read_once)
{
    const uint64_t first[] = {1, 2, 3}, second[] = {4};
    uint64_t words[SHM_LIVE_MAX], seen = 0;

    ck_assert(!live_read(&shm, &seen, words)); /* nothing was ever published */
    live_publish(&shm, first, 3);
    ck_assert(live_read(&shm, &seen, words));
    ck_assert(words[0] == 1 && words[1] == 2 && words[2] == 3 && words[3] == 0);
    ck_assert(!live_read(&shm, &seen, words));
    live_publish(&shm, second, 1);
    ck_assert(live_read(&shm, &seen, words));
    ck_assert(words[0] == 4 && words[1] == 0);
}
END_TEST

/* A master that stands still, or was killed, in the middle. */
START_TEST(half_a_change_is_none)
{
    const uint64_t first[] = {1};
    uint64_t words[SHM_LIVE_MAX], seen = 0;

    live_publish(&shm, first, 1);
    atomic_fetch_add(&shm.hdr->live_seq, 1);
    ck_assert(!live_read(&shm, &seen, words));
    ck_assert_uint_eq(seen, 0);
    atomic_fetch_add(&shm.hdr->live_seq, 1);
    ck_assert(live_read(&shm, &seen, words));
}
END_TEST

static void *publish_many(void *arg)
{
    uint64_t words[SHM_LIVE_MAX];

    (void)arg;
    for (uint64_t v = 1; v <= 20000; v++) {
        for (size_t i = 0; i < SHM_LIVE_MAX; i++)
            words[i] = v;
        live_publish(&shm, words, SHM_LIVE_MAX);
    }
    return NULL;
}

START_TEST(nobody_reads_a_mixture)
{
    uint64_t words[SHM_LIVE_MAX] = {0}, seen = 0, last = 0;
    pthread_t writer;

    ck_assert_int_eq(pthread_create(&writer, NULL, publish_many, NULL), 0);
    while (last < 20000) {
        if (!live_read(&shm, &seen, words))
            continue;
        for (size_t i = 0; i < SHM_LIVE_MAX; i++)
            ck_assert_uint_eq(words[i], words[0]);
        ck_assert_uint_gt(words[0], last);
        last = words[0];
    }
    pthread_join(writer, NULL);
}
END_TEST

START_TEST(a_pacer_keeps_its_name)
{
    uint32_t first = pacer_find(&shm, "p"), n, again;
    char name[32];

    ck_assert_uint_eq(first, 0); /* the fixture's */
    ck_assert_uint_eq(pacer_find(&shm, "other"), PACER_NONE);
    ck_assert_int_eq(pacer_name(&shm, "other", &n), DAC_OK);
    ck_assert_uint_eq(n, 1);
    ck_assert_int_eq(pacer_name(&shm, "p", &again), DAC_OK);
    ck_assert_uint_eq(again, 0);
    ck_assert_uint_eq(pacer_find(&shm, "other"), 1);
    for (uint32_t i = 2; i < SHM_PROVIDERS_MAX; i++) {
        snprintf(name, sizeof name, "p%u", i);
        ck_assert_int_eq(pacer_name(&shm, name, &n), DAC_OK);
        ck_assert_uint_eq(n, i);
    }
    ck_assert_int_eq(pacer_name(&shm, "one too many", &n), DAC_E_FULL);
    ck_assert_int_eq(pacer_name(&shm, "p7", &n), DAC_OK);
    ck_assert_uint_eq(n, 7);
}
END_TEST

START_TEST(an_ordinal_changes_hands)
{
    uint32_t old, next, self = shm.self;

    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, 5, &old), DAC_OK);
    ck_assert_int_eq(slot_take_beside(&shm, 5, &next), DAC_OK);
    ck_assert_uint_ne(old, next);
    ck_assert_uint_eq(atomic_load(&shm.hdr->ordinal_slot[5]), old);
    shm.self = next;
    ck_assert(!slot_serves(&shm));
    slot_serve(&shm, 5, next);
    ck_assert(slot_serves(&shm));
    shm.self = old;
    ck_assert(!slot_serves(&shm));
    shm.self = self;
    slot_sweep(&shm, old); /* of one that does not serve: the other one stays */
    ck_assert_uint_eq(atomic_load(&shm.hdr->ordinal_slot[5]), next);
    slot_sweep(&shm, next);
    ck_assert_uint_eq(atomic_load(&shm.hdr->ordinal_slot[5]), SHM_NO_SLOT);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("shm_live");
    TCase *t = tcase_create("shm_live");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, what_is_published_is_read_once);
    tcase_add_test(t, half_a_change_is_none);
    tcase_add_test(t, nobody_reads_a_mixture);
    tcase_add_test(t, a_pacer_keeps_its_name);
    tcase_add_test(t, an_ordinal_changes_hands);
    suite_add_tcase(s, t);
    return run_suite(s);
}
