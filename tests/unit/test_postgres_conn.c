/*
 * The connection to PostgreSQL against a real server: what a connection string may say,
 * several hosts, host names, passwords, and how it comes back.
 */
#include <arpa/inet.h>
#include <check.h>
#include <dirent.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "postgres_fixture.h"
#include "store/postgres_conn.h"
#include "store/postgres_value.h"
#include "store/store.h"

static struct event_base *base;
static struct postgres_conn *conn;
static int ups, downs, ticks;
static char down_why[512];
static int
    warnings; /* of the event loop, about descriptors that are not what they were */

static void on_up(void *arg)
{
    (void)arg;
    ups++;
}

static void on_down(void *arg, const char *why)
{
    (void)arg;
    downs++;
    snprintf(down_why, sizeof(down_why), "%s", why);
}

static void on_loop_log(int severity, const char *text)
{
    if (severity < EVENT_LOG_WARN)
        return;
    fprintf(stderr, "event loop: %s\n", text);
    warnings++;
}

static void setup(void)
{
    px_setup();
    event_set_log_callback(on_loop_log);
    base = event_base_new();
}

static void teardown(void)
{
    postgres_conn_free(conn);
    event_base_free(base);
    px_teardown();
}

static void open_conn(const char *conninfo)
{
    const struct postgres_options opt = {
        .conninfo = conninfo, .application = "dac: test", .up = on_up, .down = on_down};
    char why[256] = "";

    ck_assert_msg(postgres_conn_new(base, &opt, &conn, why, sizeof(why)) == DAC_OK,
                  "%s: %s", conninfo, why);
}

/* Turns the loop until it is up, or down for the first time, or the time is over. */
static void wait_up_or_down(double seconds)
{
    const struct timeval tv = {0, 5000};
    uint64_t until = clock_now_ns() + (uint64_t)(seconds * 1e9);

    while (ups == 0 && downs == 0 && clock_now_ns() < until) {
        event_base_loopexit(base, &tv);
        event_base_loop(base, EVLOOP_NO_EXIT_ON_EMPTY);
        ticks++;
    }
}

static void loop_for(uint64_t ns)
{
    const struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                               .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US)};

    event_base_loopexit(base, &tv);
    event_base_loop(base, EVLOOP_NO_EXIT_ON_EMPTY);
}

/* --- what a string may say ---------------------------------------------------------- */

/* %d is the port, %s the socket's folder, each at most once and in this order where both
 * are; the database is added by PGDATABASE. */
static const char *const strings[] = {
    "port=%d host=%s user=postgres",
    "port=%d host=127.0.0.1 user=postgres",
    "port=%d host=localhost user=postgres",
    "port=%d host=some.name.that.is.not.asked.for hostaddr=127.0.0.1 user=postgres",
    "port=%d hostaddr=127.0.0.1 user=postgres",
    "postgresql://postgres@localhost:%d/?connect_timeout=7&sslmode=prefer",
    "postgresql://postgres@127.0.0.1:%d",
    "port=1,%d host=127.0.0.1,localhost user=postgres",
    "port=1,%d host=/nowhere,127.0.0.1 user=postgres target_session_attrs=read-write",
    "service=the_service port=%d",
};

static void format_string(const char *form, char *out, size_t n)
{
    const char *d = strstr(form, "%d");
    const char *s = strstr(form, "%s");
    size_t k = (size_t)snprintf(out, n, "%.*s%d", (int)(d - form), form, px_port);

    if (s == NULL)
        snprintf(out + k, n - k, "%s", d + 2);
    else
        snprintf(out + k, n - k, "%.*s%s%s", (int)(s - d - 2), d + 2, px_dir, s + 2);
}

START_TEST(a_string_may_say_all_that_libpq_knows)
{
    char path[96], conninfo[256];

    snprintf(path, sizeof(path), "/tmp/dac-service-%d", (int)getpid());
    FILE *f = fopen(path, "w");

    fprintf(f, "[the_service]\nhost=localhost\nuser=postgres\n");
    fclose(f);
    setenv("PGSERVICEFILE", path, 1);
    setenv("PGDATABASE", strstr(px_conninfo, "dbname=") + 7, 1);
    format_string(strings[_i], conninfo, sizeof(conninfo));
    open_conn(conninfo);
    wait_up_or_down(10);
    unlink(path);
    ck_assert_msg(ups == 1, "%s: %s", conninfo, down_why);
    ck_assert(postgres_conn_is_up(conn));
    ck_assert_int_ge(postgres_conn_server_version(conn), 120000);
    ck_assert_int_eq(
        px_int("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dac: "
               "test' AND datname = current_database()"),
        1);
}
END_TEST

START_TEST(the_environment_counts_where_the_string_is_silent)
{
    char port[16];

    snprintf(port, sizeof(port), "%d", px_port);
    setenv("PGHOST", "localhost", 1);
    setenv("PGPORT", port, 1);
    setenv("PGUSER", "postgres", 1);
    setenv("PGDATABASE", strstr(px_conninfo, "dbname=") + 7, 1);
    open_conn("sslmode=prefer");
    wait_up_or_down(10);
    ck_assert_msg(ups == 1, "%s", down_why);
}
END_TEST

START_TEST(a_string_that_is_wrong_is_not_repeated)
{
    static const char *const wrong[] = {
        "host=a hunter2",
        "host=a password=a hunter2=b",
        "postgresql://u:p@h/db?hunter2=1",
        "host=a,b port=1,2,3 password=hunter2",
        "host=a hostaddr=1.2.3.4,1.2.3.5 password=hunter2",
        "password='hunter2",
    };
    char why[256] = "";

    ck_assert_int_eq(postgres_conninfo_check(wrong[_i], why, sizeof(why)), DAC_E_INVALID);
    ck_assert_str_ne(why, "");
    ck_assert_msg(strstr(why, "hunter2") == NULL, "%s", why);
}
END_TEST

/* --- passwords ---------------------------------------------------------------------- */

START_TEST(a_password_is_checked_by_scram_and_never_shown)
{
    char conninfo[256];

    px_exec("DROP ROLE IF EXISTS with_password; "
            "CREATE ROLE with_password LOGIN PASSWORD 'right hunter2'");
    snprintf(conninfo, sizeof(conninfo),
             "host=127.0.0.1 port=%d user=with_password password='%s hunter2' %s",
             px_port, _i == 0 ? "right" : "wrong", strstr(px_conninfo, "dbname="));
    open_conn(conninfo);
    wait_up_or_down(10);
    ck_assert_int_eq(ups, _i == 0);
    ck_assert_int_eq(downs, _i);
    ck_assert_ptr_null(strstr(down_why, "hunter2"));
    if (_i == 1)
        ck_assert_ptr_nonnull(strstr(down_why, "password authentication failed"));
}
END_TEST

/* --- hosts -------------------------------------------------------------------------- */

START_TEST(a_name_that_cannot_be_resolved_keeps_nobody_waiting)
{
    open_conn("host=no-such-host.invalid user=postgres dbname=x");
    wait_up_or_down(15);
    ck_assert_int_eq(downs, 1);
    ck_assert_msg(strstr(down_why, "resolve") || strstr(down_why, "name server"), "%s",
                  down_why);
}
END_TEST

/* A host that takes connections and says nothing. */
static int silent_host(int *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, n), 0);
    ck_assert_int_eq(listen(fd, 8), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    *port = ntohs(a.sin_port);
    return fd;
}

START_TEST(a_host_that_says_nothing_is_passed_over)
{
    char conninfo[256];
    int port;
    int fd = silent_host(&port);
    uint64_t t0 = clock_now_ns();

    snprintf(conninfo, sizeof(conninfo),
             "host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres %s", port, px_port,
             strstr(px_conninfo, "dbname="));
    open_conn(conninfo);
    wait_up_or_down(10);
    ck_assert_int_eq(downs, 1);
    ck_assert_ptr_nonnull(strstr(down_why, "did not answer in time"));
    ck_assert_uint_ge(clock_now_ns() - t0, 2 * NS_PER_S);
    downs = 0;
    wait_up_or_down(5);
    ck_assert_msg(ups == 1, "%s", down_why);
    ck_assert_int_gt(ticks, 100); /* the loop turned meanwhile */
    close(fd);
}
END_TEST

/* --- sockets ------------------------------------------------------------------------ */

static size_t open_files(void)
{
    DIR *d = opendir("/proc/self/fd");
    size_t n = 0;

    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* libpq closes its socket as soon as it finds the connection lost, while there is still
 * something to be written to it. */
START_TEST(a_loss_in_the_middle_of_writing_troubles_no_event)
{
    static const struct postgres_statement statement = {"SELECT length($1::text)", 1,
                                                        NULL};
    struct postgres_args args = POSTGRES_ARGS_INIT;
    const size_t size = 32u << 20;
    size_t before = open_files();
    char *text = malloc(size);
    char conninfo[256], why[256] = "";
    int port = px_relay_start(1u << 20, 0);
    int lost;
    const struct postgres_options opt = {.conninfo = conninfo,
                                         .application = "dac: test",
                                         .statements = &statement,
                                         .statement_count = 1,
                                         .up = on_up,
                                         .down = on_down};

    snprintf(conninfo, sizeof(conninfo), "host=127.0.0.1 port=%d user=postgres %s", port,
             strstr(px_conninfo, "dbname="));
    memset(text, 'x', size);
    postgres_args_reset(&args);
    postgres_add_text(&args, &(struct store_text){text, size});
    ck_assert_int_eq(postgres_conn_new(base, &opt, &conn, why, sizeof(why)), DAC_OK);
    for (lost = 1; lost <= 3; lost++) {
        for (int k = 0; k < 2000 && ups < lost; k++)
            loop_for(5 * NS_PER_MS);
        ck_assert_msg(ups == lost, "%s", down_why);
        ck_assert_int_eq(postgres_prepare(conn), DAC_OK);
        ck_assert_int_eq(postgres_run(conn, 0, &args, NULL, NULL), DAC_OK);
        ck_assert_int_eq(postgres_sync(conn, NULL, NULL), DAC_OK);
        for (int k = 0; k < 2000 && downs < lost; k++)
            loop_for(5 * NS_PER_MS);
        ck_assert_int_eq(downs, lost);
    }
    ck_assert_int_eq(warnings, 0);
    postgres_conn_free(conn);
    conn = NULL;
    px_relay_stop();
    ck_assert_uint_eq(open_files(), before);
    postgres_args_free(&args);
    free(text);
}
END_TEST

/* A host that takes a connection and ends it at once. */
static void on_caller(evutil_socket_t fd, short what, void *arg)
{
    int caller = accept(fd, NULL, NULL);

    (void)what;
    (void)arg;
    if (caller >= 0)
        close(caller);
}

/* From one host to the next libpq changes sockets. */
START_TEST(no_socket_is_mixed_up_while_hosts_are_tried)
{
    char conninfo[256];
    size_t before = open_files();
    int port;
    int fd = silent_host(&port);
    struct event *caller = event_new(base, fd, EV_READ | EV_PERSIST, on_caller, NULL);

    event_add(caller, NULL);
    snprintf(
        conninfo, sizeof(conninfo),
        "host=127.0.0.1,127.0.0.1,/nowhere,127.0.0.1 port=1,%d,1,%d user=postgres %s",
        port, px_port, strstr(px_conninfo, "dbname="));
    for (int i = 1; i <= 5; i++) {
        open_conn(conninfo);
        for (int k = 0; k < 2000 && ups < i; k++)
            loop_for(5 * NS_PER_MS);
        ck_assert_msg(ups == i, "%s", down_why);
        postgres_conn_free(conn);
        conn = NULL;
    }
    ck_assert_int_eq(warnings, 0);
    event_free(caller);
    close(fd);
    ck_assert_uint_eq(open_files(), before);
}
END_TEST

/* --- hosts that are not there ------------------------------------------------------- */

START_TEST(attempts_grow_rare)
{
    char conninfo[256];

    snprintf(conninfo, sizeof(conninfo), "host=127.0.0.1 port=1 user=postgres dbname=x");
    open_conn(conninfo);
    loop_for(3 * NS_PER_S);
    /* At 0, then after 50 to 100 ms, 100 to 200, 200 to 400 ... */
    ck_assert_int_ge(downs, 4);
    ck_assert_int_le(downs, 7);
    ck_assert_ptr_nonnull(strstr(down_why, "port 1 failed"));
}
END_TEST

/* Whoever waits for it asks again and again. */
START_TEST(who_waits_does_not_wait_for_long)
{
    open_conn("host=127.0.0.1 port=1 user=postgres dbname=x");
    loop_for(3 * NS_PER_S); /* so that it waits for 1.6 s or more */
    downs = 0;
    for (int i = 0; i < 150; i++) {
        postgres_conn_wanted(conn);
        loop_for(20 * NS_PER_MS);
    }
    /* At 0, then after 250 to 500 ms each. */
    ck_assert_int_ge(downs, 6);
    ck_assert_int_le(downs, 13);
}
END_TEST

/* --- statements --------------------------------------------------------------------- */

struct answer {
    int statements, syncs;
    char sqlstate[8];
    ExecStatusType last;
};

static void on_statement(void *arg, PGresult *res)
{
    struct answer *a = arg;

    a->statements++;
    a->last = PQresultStatus(res);
    if (a->last == PGRES_FATAL_ERROR)
        snprintf(a->sqlstate, sizeof(a->sqlstate), "%s", postgres_sqlstate(res));
}

static void on_sync(void *arg, PGresult *res)
{
    ck_assert_int_eq(PQresultStatus(res), PGRES_PIPELINE_SYNC);
    ((struct answer *)arg)->syncs++;
}

static void wait_syncs(const struct answer *a, int n)
{
    for (int i = 0; i < 1000 && a->syncs < n; i++)
        loop_for(5 * NS_PER_MS);
    ck_assert_int_eq(a->syncs, n);
}

START_TEST(a_failed_statement_takes_its_transaction_and_no_other)
{
    struct answer a = {0};

    open_conn(px_conninfo);
    wait_up_or_down(10);
    ck_assert_int_eq(
        postgres_script(conn, "CREATE TABLE t (i int); SELECT 1", on_statement, &a),
        DAC_OK);
    ck_assert_int_eq(postgres_script(conn, "SELECT 1", NULL, NULL), DAC_E_STATE);
    while (a.statements == 0)
        loop_for(5 * NS_PER_MS);
    ck_assert_int_eq(a.last, PGRES_TUPLES_OK);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(
            postgres_run_text(conn, "INSERT INTO t VALUES (1)", on_statement, &a),
            DAC_OK);
        ck_assert_int_eq(
            postgres_run_text(conn, i == 1 ? "SELECT 1/0" : "SELECT 1", on_statement, &a),
            DAC_OK);
        ck_assert_int_eq(postgres_run_text(conn, "SELECT 2", on_statement, &a), DAC_OK);
        ck_assert_int_eq(postgres_sync(conn, on_sync, &a), DAC_OK);
    }
    wait_syncs(&a, 3);
    ck_assert_int_eq(a.statements, 10);
    ck_assert_str_eq(a.sqlstate, "22012");
    ck_assert_uint_eq(postgres_in_flight(conn), 0);
    ck_assert_int_eq(px_int("SELECT count(*) FROM t"), 2);
}
END_TEST

START_TEST(what_was_sent_before_a_loss_never_answers)
{
    struct answer a = {0};

    open_conn(px_conninfo);
    wait_up_or_down(10);
    ck_assert_int_eq(postgres_run_text(conn, "SELECT pg_sleep(5)", on_statement, &a),
                     DAC_OK);
    ck_assert_int_eq(postgres_sync(conn, on_sync, &a), DAC_OK);
    postgres_conn_drop(conn, "for a reason");
    ck_assert_int_eq(downs, 0);
    ck_assert_int_eq(postgres_sync(conn, on_sync, &a), DAC_E_STATE);
    loop_for(500 * NS_PER_MS);
    ck_assert_int_eq(downs, 1);
    ck_assert_str_eq(down_why, "for a reason");
    ck_assert_int_eq(a.statements + a.syncs, 0);
    ck_assert_int_eq(ups, 2);
    ck_assert_uint_eq(postgres_conn_reconnects(conn), 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("postgres_conn");
    TCase *tc = tcase_create("conn");

    if (!px_init())
        return 0;
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, a_string_may_say_all_that_libpq_knows, 0,
                        (int)DAC_ARRAY_LEN(strings));
    tcase_add_test(tc, the_environment_counts_where_the_string_is_silent);
    tcase_add_loop_test(tc, a_string_that_is_wrong_is_not_repeated, 0, 6);
    tcase_add_loop_test(tc, a_password_is_checked_by_scram_and_never_shown, 0, 2);
    tcase_add_test(tc, a_name_that_cannot_be_resolved_keeps_nobody_waiting);
    tcase_add_test(tc, a_host_that_says_nothing_is_passed_over);
    tcase_add_test(tc, a_loss_in_the_middle_of_writing_troubles_no_event);
    tcase_add_test(tc, no_socket_is_mixed_up_while_hosts_are_tried);
    tcase_add_test(tc, attempts_grow_rare);
    tcase_add_test(tc, who_waits_does_not_wait_for_long);
    tcase_add_test(tc, a_failed_statement_takes_its_transaction_and_no_other);
    tcase_add_test(tc, what_was_sent_before_a_loss_never_answers);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    px_exit();
    return failed == 0 ? 0 : 1;
}
