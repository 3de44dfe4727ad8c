/*
 * Idempotency keys in the store: which turn a key stands for, for how long, and what
 * becomes of keys whose turn is not there. All of it is asked of both kinds of store.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "postgres_fixture.h"
#include "store/migrations.h"
#include "store_fixture.h"

#define START   FX_START_US
#define DAY_US  STORE_ALIAS_LIFE_US
#define HOUR_US (DAY_US / 24)

static struct event_base *base;
static struct store *st;
static struct store_reader *reader;
static struct fx_answer a;

/* Turns 1 to 4 of thread 1, and turn 5 without one. */
static void setup(void)
{
    fx_setup();
    base = event_base_new();
    st = fx_writer();
    reader = fx_reader(base);
    fx_store_thread(st, 1);
    for (unsigned n = 1; n <= 5; n++) {
        struct store_turn t = fx_turn(n, n < 5);

        fx_store_turn(st, &t);
    }
}

static void setup_postgres(void)
{
    fx_postgres = true;
    setup();
}

static void teardown(void)
{
    store_reader_close(reader);
    store_close(st);
    event_base_free(base);
    fx_teardown();
}

static void ask(unsigned key, int64_t since_us)
{
    fx_ask_alias(base, reader, "acme", key, since_us, &a);
}

static bool stands_for(unsigned key, unsigned turn)
{
    struct id want = fx_id('t', turn);
    struct store_row row = fx_alias_row(key, turn, 0);

    ask(key, 0);
    return a.e == DAC_OK && id_equal(&a.alias.turn, &want) &&
           memcmp(a.alias.body_digest, row.u.alias.body_digest, 32) == 0;
}

START_TEST(a_key_is_found_by_its_org_within_its_time)
{
    struct store_turn t = fx_turn(9, 1);
    struct store_row rows[] = {fx_turn_row(&t), fx_alias_row(7, 9, START + 123456),
                               fx_alias_row(8, 5, START)};

    ck_assert_int_eq(fx_write(st, rows, DAC_ARRAY_LEN(rows)), DAC_OK);
    for (size_t i = 0; i < DAC_ARRAY_LEN(rows); i++) {
        ck_assert_msg(rows[i].result == DAC_OK, "%s", rows[i].why);
        ck_assert_int_eq(rows[i].place,
                         fx_postgres ? STORE_IN_POSTGRES : STORE_IN_SQLITE);
    }
    ck_assert(stands_for(7, 9));
    ck_assert_int_eq(a.alias.created_us, START + 123456);
    ck_assert_mem_eq(a.alias.key_digest, rows[1].u.alias.key_digest, 32);
    ck_assert(stands_for(8, 5)); /* of a turn without a thread */

    static const struct {
        const char *org;
        unsigned key;
        int64_t since_us;
        enum dac_err e;
    } table[] = {
        {"acme", 7, START + 123456, DAC_OK},
        {"acme", 7, START + 123457, DAC_E_NOT_FOUND},
        {"acme", 7, 0, DAC_OK},
        {"acme", 7, -DAY_US, DAC_OK},
        {"other", 7, 0, DAC_E_NOT_FOUND},
        {"acme", 6, 0, DAC_E_NOT_FOUND},
    };

    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        fx_ask_alias(base, reader, table[i].org, table[i].key, table[i].since_us, &a);
        ck_assert_msg(a.e == table[i].e, "row %zu: %d", i, (int)a.e);
    }
}
END_TEST

START_TEST(orgs_have_keys_of_their_own)
{
    struct store_turn t = fx_turn(9, 0);
    struct store_row theirs = fx_alias_row(1, 9, START);

    t.org = theirs.u.alias.org = "other";
    fx_store_turn(st, &t);
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(1, 1, START)), DAC_OK);
    ck_assert_int_eq(fx_write_one(st, theirs), DAC_OK);
    ck_assert(stands_for(1, 1));
    fx_ask_alias(base, reader, "other", 1, 0, &a);
    ck_assert(a.e == DAC_OK && id_equal(&a.alias.turn, &t.id));
}
END_TEST

/* Of two rows for one key, written as two batches or as one. */
START_TEST(the_first_one_stands_for_a_day)
{
    static const struct {
        int64_t first_us, second_us;
        unsigned want; /* turn 1 or 2 */
    } table[] = {
        {0, 0, 1},      {0, 1, 1},          {0, HOUR_US, 1},    {0, DAY_US - 1, 1},
        {0, DAY_US, 1}, {0, DAY_US + 1, 2}, {0, 9 * DAY_US, 2}, {HOUR_US, 0, 1},
    };

    for (unsigned i = 0; i < DAC_ARRAY_LEN(table); i++) {
        struct store_row rows[] = {fx_alias_row(i, 1, START + table[i].first_us),
                                   fx_alias_row(i, 2, START + table[i].second_us)};

        if (_i == 0) {
            ck_assert_int_eq(fx_write(st, rows, 2), DAC_OK);
        } else {
            ck_assert_int_eq(fx_write(st, &rows[0], 1), DAC_OK);
            ck_assert_int_eq(fx_write(st, &rows[1], 1), DAC_OK);
        }
        ck_assert_int_eq(rows[0].result, DAC_OK);
        ck_assert_int_eq(rows[1].result, DAC_OK);
        ck_assert_msg(stands_for(i, table[i].want), "row %u", i);
        ck_assert_int_eq(
            a.alias.created_us,
            START + (table[i].want == 1 ? table[i].first_us : table[i].second_us));
        for (int k = 0; k < 2; k++) { /* a replay changes nothing */
            ck_assert_int_eq(fx_write(st, rows, 2), DAC_OK);
            ck_assert_msg(stands_for(i, table[i].want), "row %u again", i);
        }
    }
    ck_assert_int_eq(fx_int("SELECT count(*) FROM idempotency"),
                     (int)DAC_ARRAY_LEN(table));
}
END_TEST

START_TEST(a_key_from_the_beginning_of_time_is_one)
{
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(1, 1, 0)), DAC_OK);
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(1, 2, HOUR_US)), DAC_OK);
    ck_assert(stands_for(1, 1));
}
END_TEST

START_TEST(a_turn_may_have_many_keys)
{
    enum { KEYS = 300 };
    static struct store_row rows[KEYS];

    for (unsigned n = 0; n < KEYS; n++)
        rows[n] = fx_alias_row(n, 1 + n % 2, START + n);
    ck_assert_int_eq(fx_write(st, rows, KEYS), DAC_OK);
    for (unsigned n = 0; n < KEYS; n += 37)
        ck_assert(stands_for(n, 1 + n % 2));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM idempotency"), KEYS);
}
END_TEST

START_TEST(a_key_needs_a_stored_turn_of_its_org)
{
    struct store_turn good = fx_turn(11, 1), form = fx_turn(12, 1), lost = fx_turn(13, 7),
                      taken = fx_turn(14, 1);
    struct store_row foreign = fx_alias_row(6, 1, START);

    form.status = "perhaps"; /* refused before the database sees it */
    taken.user_message_id = good.user_message_id; /* refused by the database */
    foreign.u.alias.org = "other";
    struct store_row rows[] = {fx_turn_row(&form),         fx_turn_row(&lost),
                               fx_turn_row(&good),         fx_turn_row(&taken),
                               fx_alias_row(1, 11, START), fx_alias_row(2, 12, START),
                               fx_alias_row(3, 13, START), fx_alias_row(4, 14, START),
                               fx_alias_row(5, 99, START), foreign,
                               fx_alias_row(7, 11, START)};

    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(fx_write(st, rows, DAC_ARRAY_LEN(rows)), DAC_OK);
        ck_assert_int_eq(rows[2].result, DAC_OK);
        ck_assert_msg(rows[4].result == DAC_OK, "%s", rows[4].why);
        for (size_t k = 5; k < 10; k++) {
            ck_assert_msg(rows[k].result == DAC_E_NOT_FOUND, "row %zu: %s", k,
                          rows[k].why);
            ck_assert_ptr_nonnull(strstr(rows[k].why, "not stored"));
        }
        ck_assert_int_eq(rows[10].result, DAC_OK);
    }
    ck_assert(stands_for(1, 11) && stands_for(7, 11));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM idempotency"), 2);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected"), 3);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected WHERE kind <> 'turn'"), 0);
}
END_TEST

START_TEST(what_is_no_key_is_refused_and_not_set_aside)
{
    struct store_row bad[] = {fx_alias_row(1, 1, -1),    fx_alias_row(1, 1, INT64_MAX),
                              fx_alias_row(1, 1, START), fx_alias_row(1, 1, START),
                              fx_alias_row(1, 1, START), fx_alias_row(2, 1, START)};

    memset(&bad[2].u.alias.turn, 0, sizeof(struct id));
    bad[3].u.alias.org = "";
    bad[4].u.alias.org = "\xff";
    ck_assert_int_eq(fx_write(st, bad, DAC_ARRAY_LEN(bad)), DAC_OK);
    for (size_t i = 0; i < 5; i++)
        ck_assert_int_eq(bad[i].result, DAC_E_INVALID);
    ck_assert_int_eq(bad[5].result, DAC_OK);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM idempotency"), 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected"), 0);
}
END_TEST

START_TEST(a_key_goes_with_its_turn)
{
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(1, 1, START)), DAC_OK);
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(2, 2, START)), DAC_OK);
    fx_exec(fx_postgres ? "DELETE FROM messages WHERE turn_id::text LIKE '%1'; "
                          "DELETE FROM turns WHERE id::text LIKE '%1'"
                        : "PRAGMA foreign_keys = ON; "
                          "DELETE FROM messages WHERE turn_id LIKE '%1'; "
                          "DELETE FROM turns WHERE id LIKE '%1'");
    ask(1, 0);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    ck_assert(stands_for(2, 2));
}
END_TEST

/* Its caller asks for the turn, and is told there. */
START_TEST(a_key_outlives_the_deletion_of_its_thread)
{
    struct id turn = fx_id('t', 1);

    ck_assert_int_eq(fx_write_one(st, fx_alias_row(1, 1, START)), DAC_OK);
    ck_assert_int_eq(fx_write_one(st, fx_change_row(STORE_DELETE, 1, NULL)), DAC_OK);
    ck_assert(stands_for(1, 1));
    memset(&a, 0, sizeof(a));
    ck_assert_ptr_nonnull(store_read_turn(reader, "acme", &turn, fx_on_turn, &a));
    fx_wait(base, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
}
END_TEST

/* --- PostgreSQL alone --------------------------------------------------------------- */

START_TEST(an_exception_about_a_key_is_its_own)
{
    struct store_turn t = fx_turn(9, 1);
    struct store_row rows[] = {fx_turn_row(&t), fx_alias_row(1, 9, START),
                               fx_alias_row(2, 9, START + 1), fx_alias_row(3, 99, START)};

    px_exec("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF "
            "NEW.created_at = '2026-01-01 00:00:00.000001+00' THEN RAISE 'no'; END IF; "
            "RETURN NEW; END $$; CREATE TRIGGER t BEFORE INSERT ON idempotency FOR EACH "
            "ROW EXECUTE FUNCTION f()");
    ck_assert_int_eq(fx_write(st, rows, DAC_ARRAY_LEN(rows)), DAC_OK);
    ck_assert_int_eq(rows[0].result, DAC_OK);
    ck_assert_msg(rows[1].result == DAC_OK, "%s", rows[1].why);
    ck_assert_int_eq(rows[2].result, DAC_E_INVALID);
    ck_assert_str_eq(rows[2].sqlstate, "P0001");
    ck_assert_int_eq(rows[3].result, DAC_E_NOT_FOUND);
    ck_assert(stands_for(1, 9));
    ck_assert_int_eq(px_int("SELECT count(*) FROM rejected"), 0);
}
END_TEST

START_TEST(lost_prepared_statements_cost_a_retry_only)
{
    px_exec("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "DEALLOCATE ALL; RETURN NULL; END $$; CREATE TRIGGER t AFTER INSERT ON "
            "idempotency EXECUTE FUNCTION f()");
    for (unsigned n = 1; n <= 4; n++) {
        ck_assert_int_eq(fx_write_one(st, fx_alias_row(n, n, START)), DAC_OK);
        ck_assert(stands_for(n, n));
    }
}
END_TEST

START_TEST(the_service_may_write_and_renew_a_key)
{
    char conninfo[320], why[512] = "";
    const struct store_options opt = {.postgres = conninfo,
                                      .application = "dac: recorder"};

    px_exec(store_sql_postgres_roles);
    px_exec(store_sql_postgres_grants);
    px_exec("DO $$ BEGIN CREATE ROLE gateway LOGIN IN ROLE dac_service; "
            "EXCEPTION WHEN duplicate_object THEN END $$");
    snprintf(conninfo, sizeof(conninfo), "%s user=gateway", px_conninfo);
    store_close(st);
    ck_assert_msg(store_open(fx_base(), &opt, &st, why, sizeof(why)) == DAC_OK, "%s",
                  why);
    while (!store_up(st))
        ck_assert_int_eq(event_base_loop(fx_base(), EVLOOP_ONCE), 0);
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(1, 1, START)), DAC_OK);
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(1, 2, START + DAY_US + 1)), DAC_OK);
    ck_assert(stands_for(1, 2));
}
END_TEST

static void add_tests(TCase *tc)
{
    tcase_add_test(tc, a_key_is_found_by_its_org_within_its_time);
    tcase_add_test(tc, orgs_have_keys_of_their_own);
    tcase_add_loop_test(tc, the_first_one_stands_for_a_day, 0, 2);
    tcase_add_test(tc, a_key_from_the_beginning_of_time_is_one);
    tcase_add_test(tc, a_turn_may_have_many_keys);
    tcase_add_test(tc, a_key_needs_a_stored_turn_of_its_org);
    tcase_add_test(tc, what_is_no_key_is_refused_and_not_set_aside);
    tcase_add_test(tc, a_key_goes_with_its_turn);
    tcase_add_test(tc, a_key_outlives_the_deletion_of_its_thread);
}

static TCase *case_new(Suite *s, const char *name, void (*set_up)(void))
{
    TCase *tc = tcase_create(name);

    tcase_add_checked_fixture(tc, set_up, teardown);
    tcase_set_timeout(tc, 60);
    suite_add_tcase(s, tc);
    return tc;
}

int main(void)
{
    Suite *s = suite_create("store_aliases");
    TCase *tc;

    add_tests(case_new(s, "sqlite", setup));
    if (px_init()) {
        tc = case_new(s, "postgres", setup_postgres);
        add_tests(tc);
        tcase_add_test(tc, an_exception_about_a_key_is_its_own);
        tcase_add_test(tc, lost_prepared_statements_cost_a_retry_only);
        tcase_add_test(tc, the_service_may_write_and_renew_a_key);
    }
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    px_exit();
    return failed == 0 ? 0 : 1;
}
