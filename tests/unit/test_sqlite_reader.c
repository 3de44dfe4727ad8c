/*
 * The SQLite reader while another process holds the database's locks or has a batch open,
 * and rows that somebody spoiled.
 */
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "store_fixture.h"

static struct event_base *base;
static struct store *st;
static struct store_reader *reader;

static void setup(void)
{
    fx_setup();
    base = event_base_new();
    st = fx_writer();
    reader = fx_reader(base);
}

static void teardown(void)
{
    store_reader_close(reader);
    store_close(st);
    event_base_free(base);
    fx_teardown();
}

static void ask_thread(const char *org, unsigned n, struct fx_answer *a)
{
    struct id id = fx_id('h', n);

    memset(a, 0, sizeof(*a));
    ck_assert_ptr_nonnull(store_read_thread(reader, org, &id, fx_on_thread, a));
    ck_assert_int_eq(a->calls, 0);
    fx_wait(base, a);
}

static int order[8], order_n;

static void note_order(void *arg, enum dac_err e, const struct store_thread *t)
{
    (void)e;
    (void)t;
    order[order_n++] = *(int *)arg;
}

/* --- locks -------------------------------------------------------------------------- */

/* Another process that recovers the log after a crash: the log's index has no valid
 * header and its locks are held. Bytes of the -shm file as in SQLite's "WAL-mode File
 * Format". */
static pid_t recover_for(int ms)
{
    char path[128];
    int ready[2];
    char c;

    snprintf(path, sizeof(path), "%s-shm", fx_db);
    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();

    if (pid == 0) {
        struct flock lock = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 120, .l_len = 3};
        struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
        char header[96], zero[96] = {0};
        int fd = open(path, O_RDWR);

        if (fd < 0 || fcntl(fd, F_SETLK, &lock) != 0 ||
            pread(fd, header, sizeof(header), 0) != sizeof(header) ||
            pwrite(fd, zero, sizeof(zero), 0) != sizeof(zero) ||
            write(ready[1], "x", 1) != 1)
            _exit(1);
        nanosleep(&t, NULL);
        if (pwrite(fd, header, sizeof(header), 0) != sizeof(header))
            _exit(1);
        _exit(0);
    }
    ck_assert_int_eq(read(ready[0], &c, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void reap(pid_t pid)
{
    int status;

    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

START_TEST(a_locked_database_is_waited_for_without_stopping_the_loop)
{
    static int names[] = {0, 1, 2};
    struct id id = fx_id('h', 1);
    struct store_query *q[3];

    fx_store_thread(st, 1);
    pid_t pid = recover_for(300);
    uint64_t t0 = clock_now_ns();

    for (int i = 0; i < 3; i++)
        q[i] = store_read_thread(reader, "acme", &id, note_order, &names[i]);
    ck_assert_uint_lt(clock_now_ns() - t0, 100 * NS_PER_MS);
    store_query_cancel(q[0]); /* the one that holds the timer */
    while (order_n < 2)
        event_base_loop(base, EVLOOP_ONCE);
    ck_assert(order[0] == 1 && order[1] == 2);
    ck_assert_uint_gt(clock_now_ns() - t0, 200 * NS_PER_MS);
    reap(pid);
}
END_TEST

START_TEST(a_lock_that_stays_is_a_timeout_after_two_seconds)
{
    static struct fx_answer a;
    struct id id = fx_id('h', 1);

    fx_store_thread(st, 1);
    pid_t pid = recover_for(2600);
    uint64_t t0 = clock_now_ns();

    ck_assert_ptr_nonnull(store_read_thread(reader, "acme", &id, fx_on_thread, &a));
    fx_wait(base, &a);
    ck_assert_int_eq(a.e, DAC_E_TIMEOUT);
    ck_assert_uint_ge(clock_now_ns() - t0, 2 * NS_PER_S);
    ck_assert_uint_lt(clock_now_ns() - t0, 2500 * NS_PER_MS);
    reap(pid);
    memset(&a, 0, sizeof(a));
    ck_assert_ptr_nonnull(store_read_thread(reader, "acme", &id, fx_on_thread, &a));
    fx_wait(base, &a);
    ck_assert_int_eq(a.e, DAC_OK);
}
END_TEST

static int asked_before_commit;

static void ask_before_commit(void)
{
    static struct fx_answer a;

    ask_thread("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    asked_before_commit++;
}

START_TEST(a_reader_sees_no_open_batch_and_does_not_wait_for_it)
{
    static struct fx_answer a;

    fx_alive = ask_before_commit;
    fx_store_thread(st, 1);
    ck_assert_int_eq(asked_before_commit, 1);
    ask_thread("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_OK);
}
END_TEST

START_TEST(a_row_that_somebody_spoiled_is_corrupt)
{
    static struct fx_answer a;

    fx_store_thread(st, 1);
    fx_exec("UPDATE threads SET created_at = '2026-01-01 00:00:00,000000'");
    ask_thread("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_E_CORRUPT);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sqlite_reader");
    TCase *tc = tcase_create("reader");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_locked_database_is_waited_for_without_stopping_the_loop);
    tcase_add_test(tc, a_lock_that_stays_is_a_timeout_after_two_seconds);
    tcase_add_test(tc, a_reader_sees_no_open_batch_and_does_not_wait_for_it);
    tcase_add_test(tc, a_row_that_somebody_spoiled_is_corrupt);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
