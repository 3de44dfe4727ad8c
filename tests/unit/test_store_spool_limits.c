/*
 * How large the spool becomes, and what makes way for the queue.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spool_fixture.h"
#include "store_fixture.h"

static char *long_text(size_t n)
{
    char *text = malloc(n + 1);

    memset(text, 'x', n);
    text[n] = '\0';
    return text;
}

static struct store_row long_row(struct store_turn *t, unsigned n, unsigned thread,
                                 const char *text, size_t size)
{
    *t = fx_turn(n, thread);
    t->assistant_content = (struct store_text){text, size};

    struct store_row row = fx_turn_row(t);

    row.result = DAC_OK;
    return row;
}

static struct spool_stats stats(void)
{
    struct spool_stats s;

    spool_stats(sx_spool, &s);
    return s;
}

/* The database without its log, which starts over. */
static long long file_size(void)
{
    return fx_int("SELECT page_count * page_size FROM pragma_page_count, "
                  "pragma_page_size");
}

/* Turns of 64 KiB until there is no room, or newcomers are to be refused; how many. */
static unsigned fill(unsigned n, unsigned thread, bool to_the_end)
{
    const size_t size = 64u << 10;
    char *text = long_text(size);
    unsigned first = n;
    enum dac_err e = DAC_OK;

    while (e == DAC_OK && (to_the_end || !stats().nearly_full) && n < first + 1000) {
        struct store_turn t;
        struct store_row row = long_row(&t, n, thread, text, size);

        e = spool_put(sx_spool, &row, 1);
        n += e == DAC_OK;
        spool_tidy(sx_spool);
    }
    free(text);
    ck_assert_int_eq(e, to_the_end ? DAC_E_FULL : DAC_OK);
    if (to_the_end)
        ck_assert_ptr_nonnull(strstr(spool_error(sx_spool), "spool_max"));
    return n - first;
}

START_TEST(above_its_limit_nothing_is_taken)
{
    spool_close(sx_spool);
    sx_spool = sx_open(2u << 20, 8);
    unsigned n = fill(1, 1, false);

    ck_assert_uint_ge(n, 24); /* of 32 that had no indexes */
    n += fill(100, 1, true);  /* the reserve */
    ck_assert_uint_ge(n, 27);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_queue"), n);
    ck_assert_uint_le(stats().bytes, 2u << 20);
    ck_assert_int_le(file_size(), 2u << 20);

    struct spool_batch b;

    ck_assert_int_eq(spool_next(sx_spool, 100, 64u << 20, &b), DAC_OK);
    ck_assert_uint_eq(b.n, n);
    ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
    spool_batch_free(&b);
    ck_assert(!stats().nearly_full);
    ck_assert_uint_ge(fill(200, 2, true), 26); /* what was drained makes way */
    ck_assert_int_le(file_size(), 2u << 20);
}
END_TEST

START_TEST(a_batch_that_would_pass_the_limit_is_refused_whole)
{
    const size_t size = 64u << 10;
    char *text = long_text(size);
    struct store_turn turns[40];
    struct store_row rows[40];
    size_t n = 256, bytes = 16u << 20;

    spool_close(sx_spool);
    sx_spool = sx_open(2u << 20, 8);
    sx_put_turn(1, 1);
    for (unsigned i = 0; i < 40; i++)
        rows[i] = long_row(&turns[i], 10 + i, 1, text, size);
    ck_assert_int_eq(spool_put(sx_spool, rows, 40), DAC_E_FULL);
    ck_assert_ptr_nonnull(strstr(spool_error(sx_spool), "spool_max"));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_queue"), 1);
    ck_assert_int_le(file_size(), 2u << 20);

    /* A part of it, as large as one is told to make it. */
    for (unsigned k = 0; k < 40;) {
        n = 256;
        bytes = 16u << 20;
        spool_fit(sx_spool, &n, &bytes);
        size_t take = bytes / size < n ? bytes / size : n;

        if (take == 0)
            break;
        ck_assert_msg(spool_put(sx_spool, rows + k, take) == DAC_OK, "%zu of %u", take,
                      k);
        k += (unsigned)take;
    }
    ck_assert_uint_lt(bytes, size);
    ck_assert_uint_ge(stats().bytes, (2u << 20) / 4 * 3);
    ck_assert_int_le(file_size(), 2u << 20);
    free(text);
}
END_TEST

/* Rows of every size take no more than is thought. */
START_TEST(rows_take_no_more_than_is_thought)
{
    static const size_t sizes[] = {0, 100, 300, 600, 1500, 4000, 5000, 9000, 100000};
    const size_t size = sizes[_i];
    char *text = long_text(size);
    uint64_t before = stats().bytes;
    uint64_t thought = 0;

    for (unsigned n = 1; n <= 300; n++) {
        struct store_turn t;
        struct store_row row = long_row(&t, n, n, text, size);

        t.user_content = (struct store_text){text, size};
        t.citations = fx_text("[{\"url\":\"https://example.com/a/rather/long/one\"}]");
        row.u.turn = t;
        thought += spool_rows_size(sx_spool, &row, 1);
        ck_assert_int_eq(spool_put(sx_spool, &row, 1), DAC_OK);
    }
    ck_assert_msg(stats().bytes - before <= thought, "%zu: %llu, thought %llu", size,
                  (unsigned long long)(stats().bytes - before),
                  (unsigned long long)thought);
    free(text);
}
END_TEST

START_TEST(threads_that_are_kept_make_way_for_the_queue)
{
    const size_t size = 64u << 10;
    char *text = long_text(size);
    struct id old = fx_thread(2).id, used = fx_thread(3).id;

    spool_close(sx_spool);
    sx_spool = sx_open(2u << 20, 100);
    for (unsigned n = 1; n <= 12; n++) { /* almost its half */
        struct store_turn t;
        struct store_row row = long_row(&t, n, n, text, size);

        spool_keep(sx_spool, &row, 1);
    }
    ck_assert_uint_ge(stats().bytes, 12 * size);
    spool_filled(sx_spool, &used, true);
    sx_put_turn(100, 3); /* of a thread with something that is kept */
    sx_put_turn(101, 50);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 14);
    unsigned n = fill(200, 51, false);

    ck_assert_uint_ge(n, 22);
    ck_assert(!spool_knows_history(sx_spool, &old));
    ck_assert(spool_knows_history(sx_spool, &used)); /* one may still ask in it */
    n += fill(300, 51, true);
    ck_assert_uint_ge(n, 26);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_queue"), n + 2);
    /* All that is left is in the queue. */
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), n + 2);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM threads"), 3);
    ck_assert(!spool_knows_history(sx_spool, &old));
    ck_assert(!spool_knows_history(sx_spool, &used));
    free(text);
}
END_TEST

/* Of a thread in use what a history takes (256 KiB) stays, and no more. */
START_TEST(turns_that_no_history_takes_make_way_first)
{
    const size_t size = 31u << 10;
    char *text = long_text(size);
    struct id used = fx_thread(3).id;

    spool_close(sx_spool);
    sx_turns_kept = 64;
    sx_spool = sx_open(2u << 20, 100);
    for (unsigned n = 1; n <= 20; n++) {
        struct store_turn t;
        struct store_row row = long_row(&t, n, 3, text, size);

        spool_keep(sx_spool, &row, 1);
    }
    spool_filled(sx_spool, &used, true);
    sx_put_turn(100, 3);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 21);
    unsigned n = fill(200, 51, false);

    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns") - (long long)n, 9);
    ck_assert_int_eq(fx_int("SELECT depth FROM spool_threads WHERE used = "
                            "(SELECT min(used) FROM spool_threads)"),
                     1);
    ck_assert(spool_knows_history(sx_spool, &used));
    free(text);
}
END_TEST

/* Before newcomers are refused all that is kept has gone, the oldest first. */
START_TEST(what_was_used_last_is_kept_for_longest)
{
    const size_t size = 64u << 10;
    char *text = long_text(size);
    unsigned n = 200;

    spool_close(sx_spool);
    sx_spool = sx_open(2u << 20, 100);
    for (unsigned k = 1; k <= 12; k++) {
        struct store_turn t;
        struct store_row row = long_row(&t, k, k, text, size);

        spool_keep(sx_spool, &row, 1);
    }
    while (fx_int("SELECT count(*) FROM threads") >= 13 || n == 200) {
        struct store_turn t;
        struct store_row row = long_row(&t, n++, 51, text, size);

        ck_assert_int_eq(spool_put(sx_spool, &row, 1), DAC_OK);
        spool_tidy(sx_spool);
        ck_assert(!stats().nearly_full);
    }
    struct id first = fx_thread(1).id;

    ck_assert_uint_ge(stats().bytes, (2u << 20) / 10 * 7);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_threads WHERE thread_id LIKE "
                            "'%00000001'"),
                     0);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_threads WHERE thread_id LIKE "
                            "'%0000000c'"),
                     1);
    ck_assert(!spool_knows_history(sx_spool, &first));
    free(text);
}
END_TEST

/* --- a step at a time: the recorder waits for it ------------------------------------ */

#define STEP_TURNS 256 /* that go at once, at most */

/* Turns `first` to `last`, in batches, as an outage leaves them. */
static void put_many(unsigned first, unsigned last, unsigned thread)
{
    for (unsigned n = first; n <= last;) {
        struct store_turn turns[100];
        struct store_row rows[100];
        unsigned k = 0;

        for (; k < 100 && n <= last; k++, n++) {
            turns[k] = fx_turn(n, thread);
            rows[k] = fx_turn_row(&turns[k]);
            rows[k].result = DAC_OK;
        }
        ck_assert_msg(spool_put(sx_spool, rows, k) == DAC_OK, "%s",
                      spool_error(sx_spool));
    }
}

static void drain(void)
{
    struct spool_batch b;

    do {
        ck_assert_int_eq(spool_next(sx_spool, 1000, 64u << 20, &b), DAC_OK);
        for (size_t i = 0; i < b.n; i++)
            b.rows[i].result = DAC_OK;
        if (b.n > 0)
            ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
        spool_batch_free(&b);
    } while (sx_rows_left() > 0);
}

static long long turns_left(void)
{
    return fx_int("SELECT count(*) FROM turns");
}

/* What one step lets go of of `before` turns, to which `came` come while it is done. */
static long long step_to(long long before, long long came)
{
    long long left = turns_left();

    ck_assert_msg(before + came - left <= STEP_TURNS + came, "%lld of %lld at once",
                  before + came - left, before);
    return left;
}

/* The thread of an outage: thousands of turns of which few are kept. */
START_TEST(a_long_thread_is_shortened_a_step_at_a_time)
{
    unsigned n = 3000, steps = 0;
    long long left;

    put_many(1, n, 1);
    drain();
    left = turns_left();
    ck_assert_int_eq(left, 3000);
    while (left > 4 + 1 && steps++ < 50) {
        sx_keep_turn(++n, 1);
        left = step_to(left, 1);
    }
    ck_assert_uint_ge(steps, 3000 / STEP_TURNS);
    ck_assert_int_le(left, 5);
    /* The newest ones are those that stay. */
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns WHERE created_at > (SELECT "
                            "created_at FROM turns ORDER BY created_at LIMIT 1)"),
                     left - 1);
    char sql[160], id[ID_TEXT_SIZE];
    struct id newest = fx_turn(n, 1).id;

    id_format(&newest, id);
    snprintf(sql, sizeof sql, "SELECT count(*) FROM turns WHERE id = '%s'", id);
    ck_assert_int_eq(fx_int(sql), 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 2 * left);
}
END_TEST

/* One batch of many threads that are too long must not fall behind what comes. */
START_TEST(shortening_keeps_up_with_what_comes)
{
    struct store_turn turns[200];
    struct store_row rows[200];

    spool_close(sx_spool);
    sx_spool = sx_open(64u << 20, 300);
    for (unsigned batch = 0; batch < 12; batch++) {
        for (unsigned i = 0; i < 200; i++) {
            turns[i] = fx_turn(1 + batch * 200 + i, 1 + i);
            rows[i] = fx_turn_row(&turns[i]);
            rows[i].result = DAC_OK;
        }
        spool_keep(sx_spool, rows, 200);
    }
    ck_assert_int_le(turns_left(), 200 * 5);
}
END_TEST

START_TEST(turns_without_a_thread_go_a_step_at_a_time)
{
    unsigned steps = 0;
    long long left;

    put_many(1, 1500, 0);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns WHERE thread_id IS NULL"), 1500);
    spool_tidy(sx_spool);
    ck_assert_int_eq(turns_left(), 1500); /* they are queued */
    drain();
    for (left = turns_left(); left > 0 && steps < 50; steps++) {
        spool_tidy(sx_spool);
        left = step_to(left, 0);
    }
    ck_assert_int_eq(left, 0);
    ck_assert_uint_ge(steps, 1500 / STEP_TURNS);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 0);
}
END_TEST

START_TEST(a_long_thread_is_dropped_a_step_at_a_time)
{
    struct id old = fx_thread(1).id;
    unsigned steps = 0;
    long long left;

    put_many(1, 1500, 1);
    drain();
    spool_filled(sx_spool, &old, true);
    for (unsigned thread = 2; thread <= 9; thread++)
        sx_keep_turn(2000 + thread, thread);
    for (left = turns_left(); left > 8 && steps < 50; steps++) {
        spool_tidy(sx_spool);
        left = step_to(left, 0);
        ck_assert(!spool_knows_history(sx_spool, &old)); /* it has a gap from now on */
    }
    ck_assert_uint_ge(steps, 1500 / STEP_TURNS);
    spool_tidy(sx_spool);
    ck_assert_int_eq(turns_left(), 8);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM threads"), 8);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_threads"), 8);
}
END_TEST

/* What is let go of costs what it is itself, not what else is kept: nothing reads a whole
 * table, nor does the check that no message is left of a thread. */
START_TEST(no_upkeep_reads_all_that_is_kept)
{
    const char *const texts[] = {"SELECT 1 FROM messages WHERE thread_id = ?1",
                                 "SELECT 1 FROM turns WHERE thread_id = ?1",
                                 sqlite3_sql(sx_spool->stmt[S_OLD_TURNS]),
                                 sqlite3_sql(sx_spool->stmt[S_LOOSE_TURNS]),
                                 sqlite3_sql(sx_spool->stmt[S_DROP_MESSAGES]),
                                 sqlite3_sql(sx_spool->stmt[S_DROP_TURN])};

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        sqlite3_stmt *s;
        char sql[1000];

        snprintf(sql, sizeof sql, "EXPLAIN QUERY PLAN %s", texts[i]);
        ck_assert_int_eq(sqlite3_prepare_v2(sx_spool->db, sql, -1, &s, NULL), SQLITE_OK);
        while (sqlite3_step(s) == SQLITE_ROW) {
            const char *plan = (const char *)sqlite3_column_text(s, 3);

            ck_assert_msg(strncmp(plan, "SCAN", 4) != 0 || strstr(plan, "spool_loose"),
                          "%s: %s", texts[i], plan);
        }
        sqlite3_finalize(s);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("spool_limits");
    TCase *t = tcase_create("spool_limits");
    SRunner *r = srunner_create(s);

    tcase_add_checked_fixture(t, sx_setup, sx_teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, above_its_limit_nothing_is_taken);
    tcase_add_test(t, a_batch_that_would_pass_the_limit_is_refused_whole);
    tcase_add_loop_test(t, rows_take_no_more_than_is_thought, 0, 9);
    tcase_add_test(t, threads_that_are_kept_make_way_for_the_queue);
    tcase_add_test(t, turns_that_no_history_takes_make_way_first);
    tcase_add_test(t, what_was_used_last_is_kept_for_longest);
    tcase_add_test(t, a_long_thread_is_shortened_a_step_at_a_time);
    tcase_add_test(t, shortening_keeps_up_with_what_comes);
    tcase_add_test(t, turns_without_a_thread_go_a_step_at_a_time);
    tcase_add_test(t, a_long_thread_is_dropped_a_step_at_a_time);
    tcase_add_test(t, no_upkeep_reads_all_that_is_kept);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
