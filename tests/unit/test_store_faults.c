/*
 * The store among failures: processes that are killed, disks that are full, files that
 * are not ours, folders that are missing, locks that others hold, logs that grow, several
 * processes that start at once.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/sqlite.h"
#include "store_fixture.h"

static struct store_options opt = {.sqlite = fx_db};
static char why[512];

static void setup(void)
{
    fx_setup();
}

static void teardown(void)
{
    fx_teardown();
}

static enum dac_err try_writer(void)
{
    struct store *st = NULL;
    enum dac_err e = store_open(fx_base(), &opt, &st, why, sizeof(why));

    ck_assert_int_eq(st != NULL, e == DAC_OK);
    if (e == DAC_OK) {
        e = store_migrate(st, why, sizeof(why));
        store_close(st);
    }
    return e;
}

static enum dac_err try_reader(void)
{
    struct event_base *base = event_base_new();
    struct store_reader *r = NULL;
    enum dac_err e = store_reader_open(base, &opt, &r, why, sizeof(why));

    ck_assert_int_eq(r != NULL, e == DAC_OK);
    store_reader_close(r);
    event_base_free(base);
    return e;
}

/* The text names the file and holds `part`. */
static void expect_why(const char *part)
{
    ck_assert_msg(strstr(why, fx_db) != NULL && strstr(why, part) != NULL, "%s", why);
}

static long size_of(const char *suffix)
{
    char path[128];
    struct stat sb;

    snprintf(path, sizeof(path), "%s%s", fx_db, suffix);
    return stat(path, &sb) == 0 ? (long)sb.st_size : -1;
}

/* --- death -------------------------------------------------------------------------- */

static int say_fd;

/* Between the last row and the commit. */
static void say_open_and_wait(void)
{
    if (write(say_fd, "o", 1) != 1)
        _exit(1);
    pause();
}

/* A child stores turns 1..5 as one batch, says so, puts turns 6..9 into an open one, says
 * so, and is killed there. Only pages in the log count: the child never closes anything.
 */
START_TEST(a_committed_batch_survives_a_kill_and_an_open_one_does_not)
{
    int said[2];
    char c;

    ck_assert_int_eq(pipe(said), 0);
    pid_t pid = fork();

    if (pid == 0) {
        struct store *st = fx_writer();
        struct store_row rows[9];

        fx_store_thread(st, 1);
        for (unsigned n = 1; n <= 9; n++) {
            struct store_turn t = fx_turn(n, 1);

            rows[n - 1] = fx_turn_row(&t);
        }
        if (fx_write(st, rows, 5) != DAC_OK || write(said[1], "c", 1) != 1)
            _exit(1);
        say_fd = said[1];
        fx_alive = say_open_and_wait;
        (void)fx_write(st, rows + 5, 4);
        _exit(0);
    }
    ck_assert(read(said[0], &c, 1) == 1 && c == 'c');
    ck_assert(read(said[0], &c, 1) == 1 && c == 'o');
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    struct store *st = fx_writer();

    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 5);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 10);
    struct store_turn t = fx_turn(6, 1);

    fx_store_turn(st, &t);
    store_close(st);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 6);
}
END_TEST

/* Killed at any moment: what was reported is there, and turns are whole. */
START_TEST(a_kill_at_any_moment_leaves_whole_turns)
{
    unsigned told = 0;

    for (int round = 0; round < 8; round++) {
        int said[2];
        unsigned n;

        ck_assert_int_eq(pipe(said), 0);
        pid_t pid = fork();

        if (pid == 0) {
            struct store *st = fx_writer();

            if (round == 0)
                fx_store_thread(st, 1);
            for (n = told + 1;; n++) {
                struct store_turn t = fx_turn(n, 1);

                fx_store_turn(st, &t);
                if (write(said[1], &n, sizeof(n)) != sizeof(n))
                    _exit(1);
            }
        }
        struct timespec pause = {0, (20 + 7 * round) * 1000000L};

        ck_assert_int_eq(read(said[0], &n, sizeof(n)), sizeof(n));
        nanosleep(&pause, NULL);
        kill(pid, SIGKILL);
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        close(said[1]);
        do {
            told = n;
        } while (read(said[0], &n, sizeof(n)) == sizeof(n));
        close(said[0]);
        long long turns = fx_int("SELECT count(*) FROM turns");

        ck_assert_msg(turns == told || turns == told + 1, "%lld, told %u", turns, told);
        ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 2 * turns);
        ck_assert_int_eq(fx_int("SELECT count(*) FROM pragma_integrity_check() WHERE "
                                "integrity_check = 'ok'"),
                         1);
    }
}
END_TEST

/* --- no room ------------------------------------------------------------------------ */

static void limit_files(rlim_t bytes)
{
    struct rlimit lim;

    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &lim), 0);
    lim.rlim_cur = bytes;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &lim), 0);
}

START_TEST(a_batch_that_finds_no_room_fails_whole_and_can_be_tried_again)
{
    struct rlimit before;
    struct store *st = fx_writer();
    char big[60000];

    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    memset(big, 'x', sizeof(big));
    fx_store_thread(st, 1);
    for (int attempt = 0; attempt < 2; attempt++) {
        struct store_row rows[8];

        limit_files(attempt == 0 ? (rlim_t)size_of("-wal") + 200000 : before.rlim_cur);
        for (unsigned n = 1; n <= 8; n++) {
            struct store_turn t = fx_turn(n, 1);

            t.assistant_content = (struct store_text){big, sizeof(big)};
            rows[n - 1] = fx_turn_row(&t);
        }
        enum dac_err e = fx_write(st, rows, 8);

        if (attempt == 1) {
            ck_assert_int_eq(e, DAC_OK);
            break;
        }
        ck_assert_msg(e == DAC_E_SYS || e == DAC_E_FULL, "%s", store_error(st));
        ck_assert_ptr_nonnull(strstr(store_error(st), fx_db));
        limit_files(before.rlim_cur);
        ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 0);
    }
    store_close(st);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 8);
}
END_TEST

/* --- not ours ----------------------------------------------------------------------- */

START_TEST(a_newer_database_is_refused)
{
    ck_assert_int_eq(try_writer(), DAC_OK);
    ck_assert_int_eq(try_reader(), DAC_OK);
    fx_exec("PRAGMA user_version = 99");
    ck_assert_int_eq(try_writer(), DAC_E_STATE);
    expect_why("version 99");
    ck_assert_int_eq(try_reader(), DAC_E_STATE);
    expect_why("newer release");
    ck_assert_int_eq(fx_int("PRAGMA user_version"), 99);
}
END_TEST

START_TEST(a_database_of_another_program_is_refused_and_left_alone)
{
    fx_exec("CREATE TABLE cats (name)");
    ck_assert_int_eq(try_writer(), DAC_E_STATE);
    expect_why("another program");
    ck_assert_int_eq(try_reader(), DAC_E_STATE);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM sqlite_schema"), 1);
}
END_TEST

START_TEST(a_file_that_is_no_database_is_refused)
{
    char junk[8192];
    FILE *f = fopen(fx_db, "w");

    memset(junk, 'j', sizeof(junk));
    ck_assert_uint_eq(fwrite(junk, 1, sizeof(junk), f), sizeof(junk));
    fclose(f);
    ck_assert_int_eq(try_writer(), DAC_E_CORRUPT);
    expect_why("not an SQLite database");
    ck_assert_int_eq(try_reader(), DAC_E_CORRUPT);
    ck_assert_int_eq(size_of(""), sizeof(junk));
}
END_TEST

START_TEST(a_damaged_database_fails_the_batch_and_not_the_row)
{
    struct store *st = fx_writer();
    char junk[4096];

    fx_store_thread(st, 1);
    store_close(st);
    long long page = fx_int("SELECT rootpage FROM sqlite_schema WHERE name = 'turns'");
    int fd = open(fx_db, O_WRONLY);

    memset(junk, 'j', sizeof(junk));
    ck_assert_int_eq(pwrite(fd, junk, sizeof(junk), (page - 1) * (off_t)sizeof(junk)),
                     sizeof(junk));
    close(fd);
    struct store_turn t = fx_turn(1, 1);

    st = fx_writer();
    ck_assert_int_eq(fx_write_one(st, fx_turn_row(&t)), DAC_E_SYS);
    ck_assert_ptr_nonnull(strstr(store_error(st), "damaged"));
    store_close(st);
}
END_TEST

START_TEST(an_old_or_missing_database_is_not_read)
{
    ck_assert_int_eq(try_reader(), DAC_E_SYS);
    expect_why("No such file");
    ck_assert_int_eq(size_of(""), -1);
    struct store *st = NULL;

    ck_assert_int_eq(store_open(fx_base(), &opt, &st, why, sizeof(why)), DAC_OK);
    ck_assert(!store_up(st));
    ck_assert_int_eq(fx_write(st, NULL, 0), DAC_E_STATE);
    ck_assert_int_eq(try_reader(), DAC_E_STATE);
    expect_why("not been migrated");
    store_close(st);
}
END_TEST

START_TEST(a_missing_folder_or_a_folder_as_file_is_said)
{
    struct store *st = NULL;
    struct store_options o = {.sqlite = "/tmp/no-such-folder-of-dac/x.db"};

    ck_assert_int_eq(store_open(fx_base(), &o, &st, why, sizeof(why)), DAC_E_SYS);
    ck_assert_ptr_null(st);
    ck_assert_ptr_nonnull(strstr(why, "\"/tmp/no-such-folder-of-dac\""));
    ck_assert_ptr_nonnull(strstr(why, "create it"));
    o.sqlite = fx_dir;
    ck_assert_int_eq(store_open(fx_base(), &o, &st, why, sizeof(why)), DAC_E_SYS);
    ck_assert_ptr_nonnull(strstr(why, "not a regular file"));
    o.sqlite = "";
    ck_assert_int_eq(store_open(fx_base(), &o, &st, why, sizeof(why)), DAC_E_INVALID);
    ck_assert_ptr_nonnull(strstr(why, "[store]"));
}
END_TEST

/* What a user without rights is told; runs as nobody if the tests run as root. */
START_TEST(a_missing_permission_is_said)
{
    ck_assert_int_eq(try_writer(), DAC_OK);
    if (geteuid() == 0) {
        ck_assert_int_eq(chmod(fx_dir, 0755), 0);
        ck_assert_int_eq(seteuid(65534), 0);
    } else {
        ck_assert_int_eq(chmod(fx_dir, 0500), 0);
    }
    enum dac_err e = try_writer();

    if (geteuid() == 65534)
        ck_assert_int_eq(seteuid(0), 0);
    else
        ck_assert_int_eq(chmod(fx_dir, 0700), 0);
    ck_assert_msg(e == DAC_E_SYS || e == DAC_E_DENIED, "%s", why);
    expect_why("may not");
}
END_TEST

/* --- locks -------------------------------------------------------------------------- */

START_TEST(a_lock_held_by_a_shell_is_said_after_two_seconds)
{
    struct store *st = fx_writer();
    sqlite3 *shell;

    ck_assert_int_eq(sqlite3_open(fx_db, &shell), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(shell, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    uint64_t t0 = clock_now_ns();

    ck_assert_int_eq(fx_write(st, NULL, 0), DAC_E_BUSY);
    ck_assert_uint_ge(clock_now_ns() - t0, 1900 * NS_PER_MS);
    ck_assert_ptr_nonnull(strstr(store_error(st), "another program holds its lock"));
    ck_assert_int_eq(sqlite3_exec(shell, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    ck_assert_int_eq(fx_write(st, NULL, 0), DAC_OK);
    sqlite3_close(shell);
    store_close(st);
}
END_TEST

/* Four workers and two recorders start together on no database at all. */
START_TEST(processes_that_start_at_once_all_get_there)
{
    pid_t pid[6];
    int go[2];
    char c;

    ck_assert_int_eq(pipe(go), 0);
    for (unsigned k = 0; k < 6; k++) {
        pid[k] = fork();
        if (pid[k] != 0)
            continue;
        close(go[1]);
        if (read(go[0], &c, 1) != 0)
            _exit(1);
        if (k < 2) {
            struct store *st = fx_writer();

            fx_store_thread(st, 1);
            for (unsigned n = 1; n <= 20; n++) {
                struct store_turn t = fx_turn(n, 1);

                fx_store_turn(st, &t);
            }
            store_close(st);
            _exit(0);
        }
        uint64_t until = clock_now_ns() + 10 * NS_PER_S;
        struct event_base *base = event_base_new();
        struct store_reader *r = NULL;
        static struct fx_answer a;
        struct id id = fx_id('t', 20);

        while (store_reader_open(base, &opt, &r, why, sizeof(why)) != DAC_OK) {
            if (clock_now_ns() > until)
                _exit(2);
            usleep(500);
        }
        do {
            memset(&a, 0, sizeof(a));
            if (store_read_turn(r, "acme", &id, fx_on_turn, &a) == NULL)
                _exit(3);
            fx_wait(base, &a);
        } while (a.e == DAC_E_NOT_FOUND && clock_now_ns() < until);
        store_reader_close(r);
        event_base_free(base);
        _exit(a.e == DAC_OK ? 0 : 4);
    }
    close(go[1]);
    for (int k = 0; k < 6; k++) {
        int status;

        ck_assert_int_eq(waitpid(pid[k], &status, 0), pid[k]);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "process %d: %x", k,
                      (unsigned)status);
    }
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 20);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM schema_migrations"),
                     sqlite_version_newest());
}
END_TEST

/* --- the log's size ----------------------------------------------------------------- */

static void store_turns(struct store *st, unsigned from, unsigned count, size_t bytes)
{
    static char big[100000];

    memset(big, 'x', sizeof(big));
    for (unsigned n = from; n < from + count; n++) {
        struct store_turn t = fx_turn(n, 1);

        t.assistant_content = (struct store_text){big, bytes};
        fx_store_turn(st, &t);
    }
}

static void store_megabytes(struct store *st, unsigned from, unsigned megabytes,
                            bool tidy)
{
    for (unsigned n = from; n < from + 10 * megabytes; n++) {
        store_turns(st, n, 1, 100000);
        if (tidy)
            store_tidy(st);
    }
}

START_TEST(the_log_stays_bounded_with_and_without_upkeep)
{
    struct store *st = fx_writer();

    fx_store_thread(st, 1);
    store_megabytes(st, 1, 40, true);
    ck_assert_int_lt(size_of("-wal"), 12 << 20);
    store_megabytes(st, 1000, 60, false);
    ck_assert_int_lt(size_of("-wal"), 24 << 20);
    store_close(st);
    ck_assert_int_eq(size_of("-wal"), -1);
}
END_TEST

/* Nobody waits for it, and nobody has to come by again. */
START_TEST(the_log_is_moved_into_the_file_beside_the_commits)
{
    struct store *st = fx_writer();
    unsigned n = 1;

    fx_store_thread(st, 1);
    while (size_of("-wal") < 10400000) /* due, and not so long that it is waited for */
        store_turns(st, n++, 1, 100000);
    ck_assert_int_lt(size_of(""), 1 << 20);
    store_tidy(st);
    for (unsigned until = n + 100; size_of("") < 6 << 20; usleep(20000)) {
        ck_assert_uint_lt(n, until); /* long before a commit would do it */
        store_turns(st, n++, 1, 100);
    }
    store_close(st);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), n - 1);
}
END_TEST

/* An operator's forgotten transaction keeps the log from starting over; when it ends the
 * log does, and the file shrinks to its limit. */
START_TEST(a_long_reader_lets_the_log_grow_only_while_it_reads)
{
    struct store *st = fx_writer();
    sqlite3 *shell;

    fx_store_thread(st, 1);
    ck_assert_int_eq(sqlite3_open(fx_db, &shell), SQLITE_OK);
    ck_assert_int_eq(
        sqlite3_exec(shell, "BEGIN; SELECT count(*) FROM turns", NULL, NULL, NULL),
        SQLITE_OK);
    store_megabytes(st, 1, 80, true);
    ck_assert_int_gt(size_of("-wal"), 80 << 20);
    ck_assert_int_eq(sqlite3_exec(shell, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    store_megabytes(st, 2000, 8, true);
    ck_assert_int_le(size_of("-wal"), 64 << 20);
    sqlite3_close(shell);
    store_close(st);
}
END_TEST

/* Short reads that overlap, so that somebody always reads. */
static void read_without_a_gap(void)
{
    struct timespec pause = {0, 2000000};
    sqlite3 *shell[2];

    for (int i = 0; i < 2; i++) {
        if (sqlite3_open(fx_db, &shell[i]) != SQLITE_OK)
            _exit(1);
    }
    for (int i = 0;; i = !i) {
        (void)sqlite3_exec(shell[i], "BEGIN; SELECT count(*) FROM threads", NULL, NULL,
                           NULL);
        nanosleep(&pause, NULL);
        (void)sqlite3_exec(shell[!i], "COMMIT", NULL, NULL, NULL);
    }
}

START_TEST(readers_without_a_gap_cannot_keep_the_log_from_starting_over)
{
    struct store *st = fx_writer();

    fx_store_thread(st, 1);
    pid_t pid = fork();

    if (pid == 0)
        read_without_a_gap();
    store_megabytes(st, 1, 120, true);
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    ck_assert_int_lt(size_of("-wal"), 90 << 20);
    store_close(st);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("store_faults");
    TCase *tc = tcase_create("faults");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_committed_batch_survives_a_kill_and_an_open_one_does_not);
    tcase_add_test(tc, a_kill_at_any_moment_leaves_whole_turns);
    tcase_add_test(tc, a_batch_that_finds_no_room_fails_whole_and_can_be_tried_again);
    tcase_add_test(tc, a_newer_database_is_refused);
    tcase_add_test(tc, a_database_of_another_program_is_refused_and_left_alone);
    tcase_add_test(tc, a_file_that_is_no_database_is_refused);
    tcase_add_test(tc, a_damaged_database_fails_the_batch_and_not_the_row);
    tcase_add_test(tc, an_old_or_missing_database_is_not_read);
    tcase_add_test(tc, a_missing_folder_or_a_folder_as_file_is_said);
    tcase_add_test(tc, a_missing_permission_is_said);
    tcase_add_test(tc, a_lock_held_by_a_shell_is_said_after_two_seconds);
    tcase_add_test(tc, processes_that_start_at_once_all_get_there);
    tcase_add_test(tc, the_log_is_moved_into_the_file_beside_the_commits);
    tcase_add_test(tc, the_log_stays_bounded_with_and_without_upkeep);
    tcase_add_test(tc, a_long_reader_lets_the_log_grow_only_while_it_reads);
    tcase_add_test(tc, readers_without_a_gap_cannot_keep_the_log_from_starting_over);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
