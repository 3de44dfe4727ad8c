/*
 * What the recorder writes: batches, replays, rows that are refused, changes of threads,
 * counts, the views that people read, and how times are written.
 */
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/sqlite.h"
#include "store_fixture.h"

static struct store *st;

static void setup(void)
{
    fx_setup();
    st = fx_writer();
    fx_store_thread(st, 1);
}

static void teardown(void)
{
    store_close(st);
    fx_teardown();
}

START_TEST(files_are_for_their_owner_alone)
{
    static const char *const suffix[] = {"", "-wal", "-shm"};

    for (size_t i = 0; i < DAC_ARRAY_LEN(suffix); i++) {
        char path[128];
        struct stat sb;

        snprintf(path, sizeof(path), "%s%s", fx_db, suffix[i]);
        ck_assert_int_eq(stat(path, &sb), 0);
        ck_assert_int_eq(sb.st_mode & 0777, 0600);
    }
    ck_assert_str_eq(store_kind(st), "sqlite");
    ck_assert_int_eq(fx_int("PRAGMA application_id"), SQLITE_APPLICATION_ID);
    ck_assert_int_eq(fx_int("PRAGMA user_version"), sqlite_version_newest());
    ck_assert_int_eq(
        fx_int("SELECT max(version) FROM schema_migrations WHERE name <> '' AND "
               "julianday(applied_at) > 0"),
        sqlite_version_newest());
}
END_TEST

/* Somebody who makes the tables, and takes them away again, a few thousand times. */
static void *migrate_again_and_again(void *arg)
{
    char made[200];
    sqlite3 *db = arg;

    snprintf(made, sizeof(made),
             "BEGIN IMMEDIATE; CREATE TABLE t (a); PRAGMA application_id = %d; "
             "PRAGMA user_version = 1; COMMIT",
             SQLITE_APPLICATION_ID);
    sqlite3_busy_timeout(db, 10000);
    for (int i = 0; i < 6000; i++) {
        const char *sql = i % 2 == 0 ? made
                                     : "BEGIN IMMEDIATE; DROP TABLE t; "
                                       "PRAGMA application_id = 0; "
                                       "PRAGMA user_version = 0; COMMIT";

        if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
            sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    }
    sqlite3_exec(db, "DROP TABLE IF EXISTS t; PRAGMA application_id = 0", NULL, NULL,
                 NULL);
    sqlite3_exec(db, "CREATE TABLE the_end (a)", NULL, NULL, NULL);
    return NULL;
}

START_TEST(a_database_that_is_being_made_is_no_strange_one)
{
    char path[128];
    int version = 0, seen = 0;
    pthread_t maker;
    sqlite3 *theirs, *ours;

    snprintf(path, sizeof(path), "%s-other", fx_db);
    ck_assert_int_eq(sqlite3_open(path, &theirs), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(theirs,
                                  "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    ck_assert_int_eq(sqlite3_open(path, &ours), SQLITE_OK);
    ck_assert_int_eq(pthread_create(&maker, NULL, migrate_again_and_again, theirs), 0);
    /* The end is a table of nobody's. */
    while (sqlite_version(ours, &version) != SQLITE_OK || version >= 0)
        seen += version;
    ck_assert_int_eq(sqlite3_exec(ours, "SELECT * FROM the_end", NULL, NULL, NULL),
                     SQLITE_OK);
    ck_assert_int_gt(seen, 0);
    pthread_join(maker, NULL);
    sqlite3_close(theirs);
    sqlite3_close(ours);
    unlink(path);
}
END_TEST

/* --- replays ------------------------------------------------------------------------ */

START_TEST(a_replay_converges)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_thread h = fx_thread(1);

    for (int i = 0; i < 3; i++) {
        struct store_row rows[] = {fx_thread_row(&h), fx_turn_row(&t), fx_turn_row(&t),
                                   fx_counts_row(&t.id, 49, 2)};

        ck_assert_int_eq(fx_write(st, rows, DAC_ARRAY_LEN(rows)), DAC_OK);
        for (size_t k = 0; k < DAC_ARRAY_LEN(rows); k++)
            ck_assert_msg(rows[k].result == DAC_OK, "%s", rows[k].why);
        t.assistant_content = fx_text("another answer"); /* the first one stands */
        h.title = fx_text("another title");
    }
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 2);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM threads WHERE title = 'a title'"), 1);
    ck_assert_int_eq(
        fx_int("SELECT count(*) FROM turn_audit WHERE question = 'question' AND "
               "answer = 'answer' AND followers = 49 AND hits = 2 AND "
               "fetcher = 'worker 2'"),
        1);
}
END_TEST

START_TEST(an_id_of_another_org_is_refused)
{
    struct store_turn t = fx_turn(1, 0);
    struct store_thread h = fx_thread(1);

    fx_store_turn(st, &t);
    t.org = h.org = "other";
    struct store_row rows[] = {fx_turn_row(&t), fx_thread_row(&h)};

    ck_assert_int_eq(fx_write(st, rows, 2), DAC_OK);
    ck_assert_int_eq(rows[0].result, DAC_E_INVALID);
    ck_assert_int_eq(rows[1].result, DAC_E_INVALID);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns WHERE org = 'acme'"), 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected WHERE org = 'other' AND "
                            "kind IN ('turn', 'thread') AND sqlstate IS NULL AND "
                            "reason LIKE '%another org' AND data ->> 'org' = 'other'"),
                     2);
}
END_TEST

START_TEST(what_is_refused_is_set_aside_and_the_others_go_on)
{
    struct store_turn good = fx_turn(1, 1), lost = fx_turn(2, 9), form = fx_turn(3, 1),
                      taken = fx_turn(4, 1);

    form.status = "perhaps";
    taken.user_message_id = good.user_message_id;
    for (int i = 0; i < 2; i++) {
        struct store_row rows[] = {fx_turn_row(&good), fx_turn_row(&lost),
                                   fx_turn_row(&form), fx_turn_row(&taken),
                                   fx_change_row(STORE_TITLE, 9, "none there")};

        ck_assert_int_eq(fx_write(st, rows, DAC_ARRAY_LEN(rows)), DAC_OK);
        ck_assert_int_eq(rows[0].result, DAC_OK);
    }
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected"), 3);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected WHERE kind = 'turn' AND "
                            "reason <> '' AND data ->> 'question' = 'question'"),
                     3);
}
END_TEST

START_TEST(what_is_to_be_set_aside_is_so_unless_it_is_stored)
{
    struct store_turn there = fx_turn(1, 1);
    struct store_row row = {.kind = STORE_REJECTED,
                            .u.rejected = {.id = fx_id('t', 2),
                                           .kind = "turn",
                                           .reason = "the recorder died",
                                           .at_us = FX_START_US}};

    fx_store_turn(st, &there);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(fx_write(st, &row, 1), DAC_OK);
        ck_assert_int_eq(row.result, DAC_OK);
        ck_assert(!row.u.rejected.was_stored);
    }
    row.u.rejected.id = there.id;
    ck_assert_int_eq(fx_write(st, &row, 1), DAC_OK);
    ck_assert_int_eq(row.result, DAC_OK);
    ck_assert(row.u.rejected.was_stored);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected WHERE data IS NULL"), 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected"), 1);
    row.u.rejected.reason = NULL;
    ck_assert_int_eq(fx_write(st, &row, 1), DAC_OK);
    ck_assert_int_eq(row.result, DAC_E_INVALID);
}
END_TEST

static void never(void *arg, enum dac_err e)
{
    (void)arg;
    ck_abort_msg("called back with %d", e);
}

START_TEST(a_batch_that_was_given_up_is_not_called_back_and_may_be_written_again)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_row row = fx_turn_row(&t);

    store_write(st, &row, 1, 1, never, NULL);
    ck_assert(store_busy(st));
    store_abort(st);
    store_abort(st);
    ck_assert(!store_busy(st));
    event_base_loop(fx_base(), EVLOOP_NONBLOCK);
    fx_store_turn(st, &t);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 1);
}
END_TEST

START_TEST(an_empty_batch_is_stored_like_any_other)
{
    ck_assert(store_up(st));
    ck_assert_int_eq(fx_write(st, NULL, 0), DAC_OK);
}
END_TEST

/* --- changes of threads ------------------------------------------------------------- */

START_TEST(titles_and_deletions_reach_the_thread_and_converge)
{
    for (int i = 0; i < 2; i++) {
        struct store_row rows[] = {
            fx_change_row(STORE_TITLE, 1, "first"), fx_change_row(STORE_TITLE, 1, "last"),
            fx_change_row(STORE_TITLE, 9, "none there"),
            fx_change_row(STORE_DELETE, 9, NULL), fx_change_row(STORE_TITLE, 1, "other")};

        rows[4].u.change.org = "other";
        ck_assert_int_eq(fx_write(st, rows, DAC_ARRAY_LEN(rows)), DAC_OK);
        ck_assert_int_eq(rows[0].result, DAC_OK);
        ck_assert_int_eq(rows[1].result, DAC_OK);
        for (size_t k = 2; k < 5; k++)
            ck_assert_int_eq(rows[k].result, DAC_E_NOT_FOUND);
        ck_assert_int_eq(fx_int("SELECT count(*) FROM threads WHERE title = 'last'"), 1);
    }
    struct store_row gone = fx_change_row(STORE_DELETE, 1, NULL);

    ck_assert_int_eq(fx_write_one(st, gone), DAC_OK);
    gone.u.change.at_us += 1000000; /* the first deletion stands */
    ck_assert_int_eq(fx_write_one(st, gone), DAC_OK);
    ck_assert_int_eq(fx_write_one(st, fx_change_row(STORE_TITLE, 1, "too late")),
                     DAC_E_NOT_FOUND);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM threads WHERE title = 'last' AND "
                            "deleted_at = '2026-01-01 00:00:00.000001'"),
                     1);
}
END_TEST

START_TEST(a_title_may_be_taken_away)
{
    struct store_row bad = fx_change_row(STORE_TITLE, 1, "\xff");

    ck_assert_int_eq(fx_write_one(st, bad), DAC_E_INVALID);
    ck_assert_int_eq(fx_write_one(st, fx_change_row(STORE_TITLE, 1, NULL)), DAC_OK);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM threads WHERE title IS NULL"), 1);
}
END_TEST

/* --- refused rows ------------------------------------------------------------------- */

#define TEXT(bytes) ((struct store_text){bytes, sizeof(bytes) - 1})

static void no_id(struct store_turn *t)
{
    memset(&t->id, 0, sizeof(t->id));
}
static void no_message_id(struct store_turn *t)
{
    memset(&t->assistant_message_id, 0, sizeof(t->assistant_message_id));
}
static void no_question(struct store_turn *t)
{
    t->user_content.s = NULL;
}
static void nul_in_question(struct store_turn *t)
{
    t->user_content = TEXT("a\0b");
}
static void lone_surrogate(struct store_turn *t)
{
    t->assistant_content = TEXT("a\xed\xa0\x80");
}
static void broken_citations(struct store_turn *t)
{
    t->citations = fx_text("[\"a\"");
}
static void running(struct store_turn *t)
{
    t->status = "running";
}
static void no_org(struct store_turn *t)
{
    t->org = "";
}
static void bad_model(struct store_turn *t)
{
    t->model = "\xff";
}
static void not_a_number(struct store_turn *t)
{
    t->latency_ms = NAN;
}
static void far_future(struct store_turn *t)
{
    t->finished_us = INT64_MAX;
}
static void before_1970(struct store_turn *t)
{
    t->created_us = -1;
}
/* Only the database notices this one, after the turn itself was written. */
static void taken_message_id(struct store_turn *t)
{
    t->assistant_message_id = fx_id('a', 1);
}
static void same_message_ids(struct store_turn *t)
{
    t->assistant_message_id = t->user_message_id;
}
static void no_such_thread(struct store_turn *t)
{
    t->thread_id = fx_id('h', 9);
}
static void thread_of_another_org(struct store_turn *t)
{
    t->org = "other";
}

static const struct {
    const char *name;
    void (*spoil)(struct store_turn *t);
    enum dac_err e;
} refusals[] = {
    {"no id", no_id, DAC_E_INVALID},
    {"no message id", no_message_id, DAC_E_INVALID},
    {"no question", no_question, DAC_E_INVALID},
    {"NUL in the question", nul_in_question, DAC_E_INVALID},
    {"lone surrogate", lone_surrogate, DAC_E_INVALID},
    {"broken citations", broken_citations, DAC_E_INVALID},
    {"status running", running, DAC_E_INVALID},
    {"no org", no_org, DAC_E_INVALID},
    {"model not UTF-8", bad_model, DAC_E_INVALID},
    {"NaN", not_a_number, DAC_E_INVALID},
    {"far future", far_future, DAC_E_INVALID},
    {"before 1970", before_1970, DAC_E_INVALID},
    {"taken message id", taken_message_id, DAC_E_INVALID},
    {"same message ids", same_message_ids, DAC_E_INVALID},
    {"no such thread", no_such_thread, DAC_E_NOT_FOUND},
    {"thread of another org", thread_of_another_org, DAC_E_NOT_FOUND},
};

START_TEST(a_refused_turn_leaves_the_others_of_its_batch)
{
    struct store_turn before = fx_turn(1, 1);
    struct store_turn bad = fx_turn(2, 1);
    struct store_turn after = fx_turn(3, 1);

    bad.user_content = fx_text("a secret");
    refusals[_i].spoil(&bad);
    struct store_row rows[] = {fx_turn_row(&before), fx_turn_row(&bad),
                               fx_turn_row(&after)};

    ck_assert_int_eq(fx_write(st, rows, 3), DAC_OK);
    ck_assert_int_eq(rows[0].result, DAC_OK);
    ck_assert_msg(rows[1].result == refusals[_i].e, "%s: %s", refusals[_i].name,
                  rows[1].why);
    ck_assert_str_ne(rows[1].why, "");
    ck_assert_ptr_null(strstr(rows[1].why, "secret"));
    ck_assert_int_eq(rows[2].result, DAC_OK);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 2);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 4);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages m LEFT JOIN turns t ON t.id = "
                            "m.turn_id WHERE t.id IS NULL"),
                     0);
}
END_TEST

START_TEST(a_thread_is_refused_for_its_data)
{
    struct store_thread t = fx_thread(2);

    t.title = TEXT("a\xc3");
    ck_assert_int_eq(fx_write_one(st, fx_thread_row(&t)), DAC_E_INVALID);
    t.title.s = NULL;
    t.org = "";
    ck_assert_int_eq(fx_write_one(st, fx_thread_row(&t)), DAC_E_INVALID);
    t.org = "acme";
    t.created_us = INT64_MIN;
    ck_assert_int_eq(fx_write_one(st, fx_thread_row(&t)), DAC_E_INVALID);
    t.created_us = FX_START_US;
    ck_assert_int_eq(fx_write_one(st, fx_thread_row(&t)), DAC_OK);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM threads WHERE title IS NULL"), 1);
}
END_TEST

START_TEST(counts_need_a_stored_turn)
{
    struct store_turn t = fx_turn(1, 1);
    struct id other = fx_id('t', 2);

    struct store_row rows[] = {fx_turn_row(&t), fx_counts_row(&other, 1, 1),
                               fx_counts_row(&t.id, 7, 8)};

    ck_assert_int_eq(fx_write(st, rows, 3), DAC_OK);
    ck_assert_int_eq(rows[1].result, DAC_E_NOT_FOUND);
    ck_assert_int_eq(rows[2].result, DAC_OK);
    ck_assert_int_eq(fx_int("SELECT followers * 10 + hits FROM turns"), 78);
}
END_TEST

START_TEST(a_turn_of_a_thread_deleted_meanwhile_is_kept)
{
    struct store_turn t = fx_turn(1, 1);

    fx_exec("UPDATE threads SET deleted_at = created_at");
    fx_store_turn(st, &t);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 1);
}
END_TEST

/* --- views -------------------------------------------------------------------------- */

/* 120 turns whose figures are their numbers; the last 100 are 21 to 120, with 10 failed
 * (no first token), 5 incomplete and 5 cancelled. */
START_TEST(the_view_of_the_last_hundred_counts_right)
{
    static const struct {
        const char *column;
        double want;
    } table[] = {
        {"turns", 100},          {"leaders", 100},        {"followers", 200},
        {"hits", 100},           {"error_rate", 0.15},    {"latency_p50_ms", 70},
        {"latency_p95_ms", 115}, {"latency_p99_ms", 119}, {"latency_max_ms", 120},
        {"ttft_p50_ms", 7.5},    {"ttft_p95_ms", 11.6},   {"ttft_p99_ms", 12},
        {"ttft_max_ms", 12},
    };
    static struct store_row rows[120];
    char sql[160];

    for (unsigned n = 1; n <= 120; n++) {
        struct store_turn t = fx_turn(n, n % 2);

        t.latency_ms = n;
        t.ttft_ms = n / 10.0;
        t.followers = 2;
        t.hits = 1;
        if (n <= 30) {
            t.status = "failed";
            t.ttft_ms = -1;
            t.assistant_content.s = NULL;
        } else if (n <= 35) {
            t.status = "incomplete";
        } else if (n <= 40) {
            t.status = "cancelled";
        }
        rows[n - 1] = fx_turn_row(&t);
    }
    ck_assert_int_eq(fx_write(st, rows, 120), DAC_OK);
    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        snprintf(sql, sizeof(sql), "SELECT abs(%s - %.4f) < 1e-9 FROM slo_last_100",
                 table[i].column, table[i].want);
        ck_assert_msg(fx_int(sql) == 1, "%s", table[i].column);
    }
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turn_audit"), 120);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turn_audit WHERE answer IS NULL AND "
                            "ttft_ms IS NULL AND status = 'failed'"),
                     30);
}
END_TEST

START_TEST(the_views_stand_on_an_empty_database)
{
    ck_assert_int_eq(fx_int("SELECT count(*) FROM slo_last_100"), 1);
    ck_assert_int_eq(
        fx_int("SELECT turns = 0 AND error_rate = 0 AND hits = 0 AND ttft_p50_ms IS NULL "
               "FROM slo_last_100"),
        1);
}
END_TEST

/* --- times -------------------------------------------------------------------------- */

START_TEST(times_are_text_that_sorts)
{
    static const struct {
        int64_t us;
        const char *text;
    } table[] = {
        {0, "1970-01-01 00:00:00.000000"},
        {951782399999999, "2000-02-28 23:59:59.999999"},
        {951782400000000, "2000-02-29 00:00:00.000000"},
        {951868800000001, "2000-03-01 00:00:00.000001"},
        {4107542399000000, "2100-02-28 23:59:59.000000"},
        {4107542400000000, "2100-03-01 00:00:00.000000"},
        {1767225600123456, "2026-01-01 00:00:00.123456"},
        {253402300799999999, "9999-12-31 23:59:59.999999"},
    };
    static const char *const bad[] = {
        "",
        "2026-01-01 00:00:00",
        "2026-01-01T00:00:00.000000",
        "2026-13-01 00:00:00.000000",
        "2026-00-01 00:00:00.000000",
        "2026-01-32 00:00:00.000000",
        "2026-01-01 24:00:00.000000",
        "2026-01-01 00:60:00.000000",
        "2026-01-01 00:00:00.00000x",
        "2026-01-01 00:00:00.0000000",
    };
    char text[SQLITE_TIME_LEN + 1];
    int64_t us;

    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        sqlite_time_format(table[i].us, text);
        ck_assert_str_eq(text, table[i].text);
        ck_assert(sqlite_time_parse(text, strlen(text), &us));
        ck_assert_int_eq(us, table[i].us);
    }
    for (size_t i = 0; i < DAC_ARRAY_LEN(bad); i++)
        ck_assert_msg(!sqlite_time_parse(bad[i], strlen(bad[i]), &us), "%s", bad[i]);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("store_writer");
    TCase *tc = tcase_create("writer");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, files_are_for_their_owner_alone);
    tcase_add_test(tc, a_database_that_is_being_made_is_no_strange_one);
    tcase_add_test(tc, a_replay_converges);
    tcase_add_test(tc, an_id_of_another_org_is_refused);
    tcase_add_test(tc, what_is_refused_is_set_aside_and_the_others_go_on);
    tcase_add_test(tc, what_is_to_be_set_aside_is_so_unless_it_is_stored);
    tcase_add_test(tc,
                   a_batch_that_was_given_up_is_not_called_back_and_may_be_written_again);
    tcase_add_test(tc, an_empty_batch_is_stored_like_any_other);
    tcase_add_test(tc, titles_and_deletions_reach_the_thread_and_converge);
    tcase_add_test(tc, a_title_may_be_taken_away);
    tcase_add_loop_test(tc, a_refused_turn_leaves_the_others_of_its_batch, 0,
                        (int)DAC_ARRAY_LEN(refusals));
    tcase_add_test(tc, a_thread_is_refused_for_its_data);
    tcase_add_test(tc, counts_need_a_stored_turn);
    tcase_add_test(tc, a_turn_of_a_thread_deleted_meanwhile_is_kept);
    tcase_add_test(tc, the_view_of_the_last_hundred_counts_right);
    tcase_add_test(tc, the_views_stand_on_an_empty_database);
    tcase_add_test(tc, times_are_text_that_sorts);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
