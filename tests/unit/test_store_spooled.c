/*
 * PostgreSQL with the spool before it, as the recorder writes and the workers read it:
 * idempotency keys while PostgreSQL is there, away, silent, and coming back.
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "postgres_fixture.h"
#include "store_fixture.h"

#define SPOOL_BYTES (64u << 20)

static struct event_base *base; /* the reader's; the writer has fx_base() */
static struct store *st;
static struct store_reader *reader;
static struct fx_answer a;

static struct store_options options(const char *application)
{
    return (struct store_options){.postgres = px_conninfo,
                                  .application = application,
                                  .spool = fx_db,
                                  .spool_max_bytes = SPOOL_BYTES,
                                  .thread_cache = 100};
}

static void run(struct event_base *b, uint64_t ns)
{
    const struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                               .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US)};

    event_base_loopexit(b, &tv);
    event_base_loop(b, EVLOOP_NO_EXIT_ON_EMPTY);
}

static void open_writer(void)
{
    const struct store_options opt = options("dac: recorder");
    char why[512] = "";

    ck_assert_msg(store_open(fx_base(), &opt, &st, why, sizeof why) == DAC_OK, "%s", why);
    while (!store_up(st))
        ck_assert_int_eq(event_base_loop(fx_base(), EVLOOP_ONCE), 0);
}

static void open_reader(void)
{
    const struct store_options opt = options("dac: worker 1");
    char why[512] = "";

    ck_assert_msg(store_reader_open(base, &opt, &reader, why, sizeof why) == DAC_OK, "%s",
                  why);
}

static void setup(void)
{
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stderr)); /* what is logged of it */
    fx_postgres = true;
    fx_setup();
    base = event_base_new();
    open_writer();
    open_reader();
    fx_store_thread(st, 1);
    store_tidy(st);
}

static void teardown(void)
{
    store_reader_close(reader);
    store_close(st);
    event_base_free(base);
    fx_teardown();
}

static bool postgres_is_up(void)
{
    struct store_stats s;

    store_stats(st, &s);
    return s.up;
}

/* Takes the server away, and waits until the writer has noticed. */
static void stop(void)
{
    px_stop("fast");
    for (int i = 0; i < 500 && postgres_is_up(); i++)
        run(fx_base(), 10 * NS_PER_MS);
    ck_assert(!postgres_is_up());
}

static void wait_until_drained(void)
{
    struct store_stats s;

    for (int i = 0; i < 1000; i++) {
        store_stats(st, &s);
        if (s.up && s.spool_rows == 0)
            return;
        run(fx_base(), 10 * NS_PER_MS);
    }
    ck_abort_msg("not drained");
}

static void ask(unsigned key)
{
    fx_ask_alias(base, reader, "acme", key, 0, &a);
}

static bool stands_for(unsigned key, unsigned turn)
{
    struct id want = fx_id('t', turn);
    struct store_row row = fx_alias_row(key, turn, 0);

    ask(key);
    return a.e == DAC_OK && id_equal(&a.alias.turn, &want) &&
           memcmp(a.alias.key_digest, row.u.alias.key_digest, 32) == 0 &&
           memcmp(a.alias.body_digest, row.u.alias.body_digest, 32) == 0;
}

/* How long it took to say that there is no such key. */
static uint64_t not_found_after(unsigned key)
{
    uint64_t t0 = clock_now_ns();

    ask(key);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    return clock_now_ns() - t0;
}

/* Turn n with key n; where it went. */
static enum store_place write_turn(unsigned n)
{
    struct store_turn t = fx_turn(n, 1);
    struct store_row rows[] = {fx_turn_row(&t), fx_alias_row(n, n, FX_START_US + n)};

    ck_assert_int_eq(fx_write(st, rows, 2), DAC_OK);
    ck_assert_msg(rows[0].result == DAC_OK, "%s", rows[0].why);
    ck_assert_msg(rows[1].result == DAC_OK, "%s", rows[1].why);
    ck_assert_int_eq(rows[0].place, rows[1].place);
    store_tidy(st);
    return rows[1].place;
}

static int ask_turn(unsigned n)
{
    struct id id = fx_id('t', n);

    memset(&a, 0, sizeof a);
    ck_assert_ptr_nonnull(store_read_turn(reader, "acme", &id, fx_on_turn, &a));
    fx_wait(base, &a);
    return a.e;
}

START_TEST(keys_are_known_while_postgresql_is_away)
{
    ck_assert_int_eq(write_turn(1), STORE_IN_POSTGRES);
    stop();
    ck_assert_int_eq(write_turn(2), STORE_IN_SPOOL);
    ck_assert(stands_for(1, 1) && stands_for(2, 2));
    ck_assert_int_eq(a.alias.created_us, FX_START_US + 2);
    fx_ask_alias(base, reader, "acme", 2, FX_START_US + 3, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    fx_ask_alias(base, reader, "other", 2, 0, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    ck_assert_int_eq(ask_turn(1), DAC_OK);
    ck_assert_int_eq(ask_turn(2), DAC_OK);
    px_start();
    wait_until_drained();
    ck_assert_int_eq(px_int("SELECT count(*) FROM idempotency"), 2);
    ck_assert(stands_for(1, 1) && stands_for(2, 2));
    ck_assert_int_eq(write_turn(3), STORE_IN_POSTGRES);
}
END_TEST

/* The file is of another service, or was lost. */
static void forget(void)
{
    char command[160];

    store_reader_close(reader);
    store_close(st);
    snprintf(command, sizeof command, "rm -f '%s'*", fx_db);
    ck_assert_int_eq(system(command), 0);
    open_writer();
    open_reader();
}

START_TEST(a_key_that_the_spool_does_not_remember_is_known_by_postgresql)
{
    write_turn(1);
    forget();
    ck_assert(stands_for(1, 1)); /* asked before the reader is connected */
    ck_assert_int_eq(ask_turn(1), DAC_OK);
    not_found_after(2);
}
END_TEST

START_TEST(an_unknown_key_waits_for_nobody_while_postgresql_is_away)
{
    write_turn(1);
    forget();
    ck_assert(stands_for(1, 1));
    stop();
    run(base, 20 * NS_PER_MS);
    /* It may be back in a moment; it is not. */
    uint64_t took = not_found_after(1);
    ck_assert_uint_gt(took, 200 * NS_PER_MS);
    ck_assert_uint_lt(took, 900 * NS_PER_MS);
    ck_assert_uint_lt(not_found_after(2), 150 * NS_PER_MS);
    px_start();
    for (int i = 0; i < 200; i++) {
        run(base, 50 * NS_PER_MS);
        ask(1);
        if (a.e == DAC_OK)
            break;
    }
    ck_assert(stands_for(1, 1));
}
END_TEST

START_TEST(a_restart_of_postgresql_is_waited_for_a_moment)
{
    write_turn(1);
    forget();
    ck_assert(stands_for(1, 1));
    px_exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "application_name = 'dac: worker 1'");
    run(base, 5 * NS_PER_MS);
    ck_assert(stands_for(1, 1));
}
END_TEST

START_TEST(a_silent_postgresql_makes_a_key_new)
{
    write_turn(1);
    forget();
    ck_assert(stands_for(1, 1));
    px_signal_all(SIGSTOP);
    uint64_t took = not_found_after(1);
    ck_assert_uint_gt(took, 250 * NS_PER_MS);
    ck_assert_uint_lt(took, 900 * NS_PER_MS);
    px_signal_all(SIGCONT);
    ck_assert(stands_for(1, 1));
}
END_TEST

START_TEST(a_reader_that_finds_no_server_says_so_in_the_time_of_a_question)
{
    forget();
    stop();
    store_reader_close(reader);
    open_reader();
    uint64_t took = not_found_after(1);
    ck_assert_uint_gt(took, 1500 * NS_PER_MS);
    ck_assert_uint_lt(took, 2900 * NS_PER_MS);
    ck_assert_uint_lt(not_found_after(1), 150 * NS_PER_MS);
    px_start();
}
END_TEST

/* A key that comes late, for a turn that PostgreSQL has. */
START_TEST(a_key_in_the_queue_does_not_hide_its_turn)
{
    struct store_turn t = fx_turn(1, 0); /* without a thread: not kept by the spool */

    fx_store_turn(st, &t);
    stop();
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(5, 1, FX_START_US)), DAC_OK);
    ck_assert(stands_for(5, 1));
    px_start();
    ck_assert_int_eq(fx_int("SELECT count(*) FROM idempotency"), 0); /* not drained yet */
    for (int i = 0; i < 5 && ask_turn(1) != DAC_OK; i++) /* the reader connects again */
        ;
    ck_assert_int_eq(a.e, DAC_OK);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM idempotency"), 0);
    wait_until_drained();
    ck_assert_int_eq(fx_int("SELECT count(*) FROM idempotency"), 1);
}
END_TEST

START_TEST(a_spooled_key_whose_turn_is_nowhere_is_forgotten)
{
    stop();
    ck_assert_int_eq(fx_write_one(st, fx_alias_row(5, 77, FX_START_US)), DAC_OK);
    ck_assert(stands_for(5, 77));
    px_start();
    wait_until_drained();
    for (int i = 0; i < 5; i++)
        ask(5);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    ck_assert_int_eq(px_int("SELECT count(*) FROM rejected"), 0);
}
END_TEST

static void exec_in_spool(const char *sql)
{
    sqlite3 *db;

    ck_assert_int_eq(sqlite3_open(fx_db, &db), SQLITE_OK);
    ck_assert_msg(sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK, "%s",
                  sqlite3_errmsg(db));
    sqlite3_close(db);
}

START_TEST(a_long_queue_makes_no_question_slow)
{
    uint64_t quickest = UINT64_MAX;

    write_turn(1); /* kept, and not in the queue */
    stop();
    exec_in_spool(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < "
        "400000) INSERT INTO spool_queue (kind, id, followers, hits, queued_us) "
        "SELECT 2, printf('%036d', i), 0, 0, 1 FROM n");
    for (int i = 0; i < 20; i++) {
        uint64_t t0 = clock_now_ns();

        ck_assert_int_eq(ask_turn(1), DAC_OK);
        ck_assert(stands_for(1, 1));
        if (clock_now_ns() - t0 < quickest)
            quickest = clock_now_ns() - t0;
    }
    ck_assert_uint_lt(quickest, 5 * NS_PER_MS);
    px_start();
}
END_TEST

START_TEST(a_full_batch_of_turns_and_keys_is_remembered_whole)
{
    enum { N = 256 };
    static struct store_row rows[2 * N];

    for (unsigned n = 0; n < N; n++) {
        struct store_turn t = fx_turn(n + 1, 1);

        rows[n] = fx_turn_row(&t);
        rows[N + n] = fx_alias_row(n + 1, n + 1, FX_START_US);
    }
    ck_assert_int_eq(fx_write(st, rows, 2 * N), DAC_OK);
    store_tidy(st);
    stop();
    for (unsigned n = 1; n <= N; n++)
        ck_assert_msg(stands_for(n, n), "key %u", n);
    px_start();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("store_spooled");
    TCase *tc = tcase_create("spooled");

    if (!px_init())
        return 0;
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, keys_are_known_while_postgresql_is_away);
    tcase_add_test(tc, a_key_that_the_spool_does_not_remember_is_known_by_postgresql);
    tcase_add_test(tc, an_unknown_key_waits_for_nobody_while_postgresql_is_away);
    tcase_add_test(tc, a_restart_of_postgresql_is_waited_for_a_moment);
    tcase_add_test(tc, a_silent_postgresql_makes_a_key_new);
    tcase_add_test(tc, a_reader_that_finds_no_server_says_so_in_the_time_of_a_question);
    tcase_add_test(tc, a_key_in_the_queue_does_not_hide_its_turn);
    tcase_add_test(tc, a_spooled_key_whose_turn_is_nowhere_is_forgotten);
    tcase_add_test(tc, a_long_queue_makes_no_question_slow);
    tcase_add_test(tc, a_full_batch_of_turns_and_keys_is_remembered_whole);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    px_exit();
    return failed == 0 ? 0 : 1;
}
