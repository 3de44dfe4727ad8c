/*
 * The PostgreSQL reader and what befalls its server: lost connections, restarts, locks, a
 * server that is frozen or away, too many queries, a schema that is not there yet.
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "postgres_fixture.h"
#include "store/migrations.h"
#include "store_fixture.h"

static struct event_base *base;
static struct store *st;
static struct store_reader *reader;

static void setup(void)
{
    fx_postgres = true;
    fx_setup();
    base = event_base_new();
    st = fx_writer();
    reader = fx_reader(base);
    fx_store_thread(st, 1);
}

static void teardown(void)
{
    store_reader_close(reader);
    store_close(st);
    event_base_free(base);
    fx_teardown();
}

/* --- asking for thread 1 ------------------------------------------------------------ */

static int order_n;
static int refused;
static enum dac_err last_error;

/* *arg: how many were called before. */
static void note_order(void *arg, enum dac_err e, const struct store_thread *t)
{
    ck_assert_int_eq(t != NULL, e == DAC_OK);
    ck_assert_int_eq(*(int *)arg, order_n);
    last_error = e;
    order_n++;
}

static void count_refused(void *arg, enum dac_err e, const struct store_thread *t)
{
    (void)arg;
    (void)t;
    refused += e == DAC_E_BUSY;
    last_error = e;
    order_n++;
}

static struct store_query *ask(store_thread_cb cb, void *arg)
{
    struct id id = fx_id('h', 1);
    struct store_query *q = store_read_thread(reader, "acme", &id, cb, arg);

    ck_assert_ptr_nonnull(q);
    return q;
}

static void ask_and_note(int n)
{
    static int names[] = {0, 1, 2, 3, 4, 5, 6, 7};

    for (int i = 0; i < n; i++)
        ask(note_order, &names[i]);
}

static enum dac_err ask_once(void)
{
    struct fx_answer *a = calloc(1, sizeof(*a));

    ask(fx_on_thread, a);
    fx_wait(base, a);
    enum dac_err e = a->e;

    free(a);
    return e;
}

static void linger(int ms)
{
    struct timeval tv = {ms / 1000, ms % 1000 * 1000L};

    event_base_loopexit(base, &tv);
    event_base_loop(base, EVLOOP_NO_EXIT_ON_EMPTY);
}

/* So many times, and then not again. */
static void run_until_called(int n)
{
    uint64_t until = clock_now_ns() + 10 * NS_PER_S;

    while (order_n < n && clock_now_ns() < until)
        linger(5);
    linger(20);
    ck_assert_int_eq(order_n, n);
}

static void wait_until_answered(void)
{
    uint64_t until = clock_now_ns() + 15 * NS_PER_S;

    while (ask_once() != DAC_OK)
        ck_assert_uint_lt(clock_now_ns(), until);
}

static void end_session(void)
{
    px_exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "application_name = 'dac: worker 0'");
}

static long long session(void)
{
    return px_int("SELECT pid FROM pg_stat_activity WHERE "
                  "application_name = 'dac: worker 0'");
}

/* Nobody else may even read the table until the connection is closed. */
static PGconn *lock_table(const char *name)
{
    char sql[96];
    PGconn *lock = px_connect();

    snprintf(sql, sizeof(sql), "BEGIN; LOCK TABLE %s IN ACCESS EXCLUSIVE MODE", name);
    PGresult *res = PQexec(lock, sql);

    ck_assert_int_eq(PQresultStatus(res), PGRES_COMMAND_OK);
    PQclear(res);
    return lock;
}

/* --- troubles ----------------------------------------------------------------------- */

START_TEST(a_lost_connection_is_not_noticed_by_those_who_ask)
{
    ck_assert_int_eq(ask_once(), DAC_OK);
    PGconn *lock = lock_table("threads");

    ask_and_note(4);
    linger(100); /* they are with the server, and wait for the lock */
    ck_assert_int_eq(order_n, 0);
    end_session();
    PQfinish(lock);
    run_until_called(4);
    ck_assert_int_eq(last_error, DAC_OK);
}
END_TEST

START_TEST(what_is_cancelled_while_the_server_has_it_is_not_called)
{
    static int names[] = {0, 99, 1};
    struct store_query *q[3];

    ck_assert_int_eq(ask_once(), DAC_OK);
    PGconn *lock = lock_table("threads");

    for (int i = 0; i < 3; i++)
        q[i] = ask(note_order, &names[i]);
    linger(50);
    store_query_cancel(q[1]);
    PQfinish(lock);
    run_until_called(2);
    ck_assert_int_eq(last_error, DAC_OK);
    ck_assert_int_eq(ask_once(), DAC_OK);
}
END_TEST

START_TEST(a_restarted_server_is_waited_for)
{
    ck_assert_int_eq(ask_once(), DAC_OK);
    px_stop("fast");
    ask_and_note(3);
    linger(100);
    ck_assert_int_eq(order_n, 0);
    px_start();
    run_until_called(3);
    ck_assert_int_eq(last_error, DAC_OK);
}
END_TEST

START_TEST(a_server_that_is_away_is_a_timeout_after_two_seconds)
{
    px_stop("immediate");
    uint64_t t0 = clock_now_ns();

    ck_assert_int_eq(ask_once(), DAC_E_TIMEOUT);
    ck_assert_uint_ge(clock_now_ns() - t0, 2 * NS_PER_S);
    ck_assert_uint_lt(clock_now_ns() - t0, 3 * NS_PER_S);
    px_start();
    wait_until_answered();
}
END_TEST

START_TEST(a_locked_table_is_a_timeout_and_does_not_cost_the_connection)
{
    ck_assert_int_eq(ask_once(), DAC_OK);
    long long before = session();
    PGconn *lock = lock_table("threads");
    uint64_t t0 = clock_now_ns();

    ask_and_note(3);
    run_until_called(3);
    ck_assert_int_eq(last_error, DAC_E_TIMEOUT);
    ck_assert_uint_lt(clock_now_ns() - t0, 3 * NS_PER_S);
    PQfinish(lock);
    ck_assert_int_eq(ask_once(), DAC_OK);
    ck_assert_int_eq(session(), before);
}
END_TEST

START_TEST(a_frozen_server_is_left_and_found_again)
{
    ck_assert_int_eq(ask_once(), DAC_OK);
    px_signal_all(SIGSTOP);
    uint64_t t0 = clock_now_ns();

    ck_assert_int_eq(ask_once(), DAC_E_TIMEOUT);
    ck_assert_uint_lt(clock_now_ns() - t0, 3 * NS_PER_S);
    ck_assert_int_eq(ask_once(), DAC_E_TIMEOUT);
    px_signal_all(SIGCONT);
    wait_until_answered();
}
END_TEST

START_TEST(what_waits_is_bounded)
{
    px_stop("fast");
    for (int i = 0; i < 1003; i++)
        ask(count_refused, NULL);
    linger(50);
    ck_assert_int_eq(order_n, 3);
    ck_assert_int_eq(refused, 3);
    px_start();
    run_until_called(1003);
    ck_assert_int_eq(refused, 3);
    ck_assert_int_eq(last_error, DAC_OK);
}
END_TEST

START_TEST(many_at_once_keep_their_order_over_lost_connections)
{
    static int names[900];

    for (int i = 0; i < 900; i++) {
        names[i] = i;
        ask(note_order, &names[i]);
        if (i % 200 == 100)
            end_session();
        if (i % 50 == 0)
            linger(1);
    }
    run_until_called(900);
    ck_assert_int_eq(last_error, DAC_OK);
}
END_TEST

/* --- schema and rights -------------------------------------------------------------- */

START_TEST(a_reader_waits_for_the_schema)
{
    static struct fx_answer a;
    struct id id = fx_id('h', 2);

    px_exec("ALTER TABLE turns RENAME TO not_yet");
    struct store_reader *early = fx_reader(base);

    ck_assert_ptr_nonnull(store_read_thread(early, "acme", &id, fx_on_thread, &a));
    linger(300);
    ck_assert_int_eq(a.calls, 0);
    px_exec("ALTER TABLE not_yet RENAME TO turns");
    fx_wait(base, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    store_reader_close(early);
}
END_TEST

START_TEST(the_service_s_role_can_read)
{
    static struct fx_answer a;
    char conninfo[320];
    const struct store_options opt = {.postgres = conninfo,
                                      .application = "dac: worker 1"};
    struct store_reader *r = NULL;
    char why[512] = "";
    struct store_turn t = fx_turn(1, 1);

    fx_store_turn(st, &t);
    px_exec(store_sql_postgres_roles);
    px_exec(store_sql_postgres_grants);
    px_exec("DO $$ BEGIN CREATE ROLE reader LOGIN IN ROLE dac_service; "
            "EXCEPTION WHEN duplicate_object THEN END $$");
    snprintf(conninfo, sizeof(conninfo), "%s user=reader", px_conninfo);
    ck_assert_msg(store_reader_open(base, &opt, &r, why, sizeof(why)) == DAC_OK, "%s",
                  why);
    ck_assert_ptr_nonnull(store_read_turn(r, "acme", &t.id, fx_on_turn, &a));
    fx_wait(base, &a);
    ck_assert_int_eq(a.e, DAC_OK);
    store_reader_close(r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("postgres_reader");
    TCase *tc = tcase_create("reader");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_lost_connection_is_not_noticed_by_those_who_ask);
    tcase_add_test(tc, what_is_cancelled_while_the_server_has_it_is_not_called);
    tcase_add_test(tc, a_restarted_server_is_waited_for);
    tcase_add_test(tc, a_server_that_is_away_is_a_timeout_after_two_seconds);
    tcase_add_test(tc, a_locked_table_is_a_timeout_and_does_not_cost_the_connection);
    tcase_add_test(tc, a_frozen_server_is_left_and_found_again);
    tcase_add_test(tc, what_waits_is_bounded);
    tcase_add_test(tc, many_at_once_keep_their_order_over_lost_connections);
    tcase_add_test(tc, a_reader_waits_for_the_schema);
    tcase_add_test(tc, the_service_s_role_can_read);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    if (px_init())
        srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    px_exit();
    return failed == 0 ? 0 : 1;
}
