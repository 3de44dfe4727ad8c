/*
 * The PostgreSQL writer against a real server: what is stored, replays, rows that are
 * refused and set aside, and what befalls a server while a batch is on its way.
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "postgres_fixture.h"
#include "store/internal.h"
#include "store_fixture.h"

#define PATIENCE_NS (2 * NS_PER_S)

static struct store *st;
static int changes;

static void changed(void *arg)
{
    (void)arg;
    changes++;
}

static struct store *open_store(const char *conninfo)
{
    const struct store_options opt = {
        .postgres = conninfo, .application = "dac: recorder", .changed = changed};
    struct store *s = NULL;
    char why[512] = "";

    ck_assert_msg(store_open(fx_base(), &opt, &s, why, sizeof(why)) == DAC_OK, "%s", why);
    return s;
}

static void turn_loop_for(uint64_t ns)
{
    const struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                               .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US)};

    event_base_loopexit(fx_base(), &tv);
    event_base_loop(fx_base(), EVLOOP_NO_EXIT_ON_EMPTY);
}

static void wait_until_up(struct store *s)
{
    uint64_t until = clock_now_ns() + 20 * NS_PER_S;

    while (!store_up(s)) {
        ck_assert_msg(clock_now_ns() < until, "not up: %s", store_error(s));
        turn_loop_for(20 * NS_PER_MS);
    }
}

/* Something befell the connection, and the writer has noticed. */
static void wait_for_change(int before)
{
    uint64_t until = clock_now_ns() + 20 * NS_PER_S;

    while (changes == before) {
        ck_assert(clock_now_ns() < until);
        turn_loop_for(5 * NS_PER_MS);
    }
}

static void end_backend(void)
{
    px_exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "application_name = 'dac: recorder'");
}

static void setup(void)
{
    px_setup();
    st = open_store(px_conninfo);
    wait_until_up(st);
    fx_store_thread(st, 1);
}

static void teardown(void)
{
    store_close(st);
    event_base_free(fx_base());
    px_teardown();
}

/* --- what is stored ----------------------------------------------------------------- */

START_TEST(a_turn_is_stored_as_it_was_given)
{
    struct store_turn t = fx_turn(1, 1);

    t.citations = fx_text("[{\"url\":\"http://a\"}]");
    t.tool_calls = fx_text("[{\"id\":\"call_1\"}]");
    t.fetcher = "worker 2";
    t.generation = 1;
    t.followers = 4;
    t.hits = 5;
    t.error_code = "a_code";
    fx_store_turn(st, &t);
    ck_assert_str_eq(store_kind(st), "postgres");
    ck_assert_str_eq(
        px_text("SELECT concat_ws('|', id, thread_id, org, provider, model, status, "
                "finish_reason, error_code, ttft_ms, latency_ms, queue_wait_ms, "
                "prompt_tokens, completion_tokens, followers, hits, generation, fetcher, "
                "encode(key_digest, 'hex') LIKE '010203000%', "
                "created_at AT TIME ZONE 'UTC', finished_at AT TIME ZONE 'UTC') "
                "FROM turns"),
        "74000000-0000-0000-0000-000000000001|68000000-0000-0000-0000-000000000001|acme|"
        "mock|small|complete|stop|a_code|10.5|20.25|0|3|5|4|5|1|worker 2|t|2026-01-01 "
        "00:00:01|2026-01-01 00:00:01.5");
    ck_assert_str_eq(
        px_text("SELECT string_agg(concat_ws('|', id, turn_id = (SELECT id FROM turns), "
                "thread_id, role, content, citations, tool_calls, created_at AT TIME "
                "ZONE 'UTC'), "
                "' ' ORDER BY role DESC) FROM messages"),
        "75000000-0000-0000-0000-000000000001|t|68000000-0000-0000-0000-000000000001|"
        "user|question|2026-01-01 00:00:01 "
        "61000000-0000-0000-0000-000000000001|t|68000000-0000-0000-0000-000000000001|"
        "assistant|answer|[{\"url\":\"http://a\"}]|[{\"id\":\"call_1\"}]|2026-01-01 "
        "00:00:01.5");
    ck_assert_str_eq(px_text("SELECT application_name FROM pg_stat_activity WHERE "
                             "datname = current_database() AND pid <> pg_backend_pid() "
                             "AND backend_type = 'client backend'"), /* no autovacuum */
                     "dac: recorder");
}
END_TEST

START_TEST(what_is_missing_is_null)
{
    struct store_turn t = fx_turn(1, 0);

    t.ttft_ms = t.latency_ms = t.queue_wait_ms = -1;
    t.prompt_tokens = t.completion_tokens = -1;
    t.finish_reason = t.fetcher = NULL;
    t.status = "failed";
    t.assistant_content.s = NULL;
    fx_store_turn(st, &t);
    ck_assert_int_eq(
        px_int("SELECT count(*) FROM turns WHERE num_nulls(thread_id, finish_reason, "
               "error_code, ttft_ms, latency_ms, queue_wait_ms, prompt_tokens, "
               "completion_tokens, fetcher) = 9"),
        1);
    ck_assert_int_eq(px_int("SELECT count(*) FROM messages WHERE thread_id IS NULL AND "
                            "role = 'user' AND citations IS NULL"),
                     1);
    ck_assert_int_eq(px_int("SELECT count(*) FROM messages"), 1);
}
END_TEST

START_TEST(a_replay_converges)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_thread h = fx_thread(1);

    for (int i = 0; i < 3; i++) {
        struct store_row rows[] = {fx_thread_row(&h), fx_turn_row(&t),
                                   fx_counts_row(&t.id, 49, 2)};

        ck_assert_int_eq(fx_write(st, rows, 3), DAC_OK);
        for (size_t k = 0; k < 3; k++)
            ck_assert_msg(rows[k].result == DAC_OK, "%s", rows[k].why);
        t.assistant_content = fx_text("another answer"); /* the first one stands */
        h.title = fx_text("another title");
    }
    ck_assert_int_eq(px_int("SELECT count(*) FROM messages"), 2);
    ck_assert_int_eq(px_int("SELECT count(*) FROM threads WHERE title = 'a title'"), 1);
    ck_assert_int_eq(
        px_int("SELECT count(*) FROM turn_audit WHERE question = 'question' AND answer = "
               "'answer' AND followers = 49 AND hits = 2"),
        1);
    ck_assert_int_eq(px_int("SELECT count(*) FROM rejected"), 0);
}
END_TEST

START_TEST(one_turn_twice_in_a_batch_is_one)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_row rows[] = {fx_turn_row(&t), fx_turn_row(&t)};

    ck_assert_int_eq(fx_write(st, rows, 2), DAC_OK);
    ck_assert_int_eq(rows[0].result, DAC_OK);
    ck_assert_int_eq(rows[1].result, DAC_OK);
    ck_assert_int_eq(px_int("SELECT count(*) FROM messages"), 2);
}
END_TEST

START_TEST(a_full_batch_with_large_texts_is_one_transaction)
{
    static struct store_row rows[256];
    static char big[64000];

    memset(big, 'x', sizeof(big));
    for (unsigned n = 1; n <= 256; n++) {
        struct store_turn t = fx_turn(n, n % 2);

        t.assistant_content = (struct store_text){big, sizeof(big)};
        rows[n - 1] = fx_turn_row(&t);
    }
    fx_patience_ns = 30 * NS_PER_S;
    ck_assert_msg(fx_write(st, rows, 256) == DAC_OK, "%s", store_error(st));
    for (size_t i = 0; i < 256; i++)
        ck_assert_msg(rows[i].result == DAC_OK, "%s", rows[i].why);
    ck_assert_int_eq(
        px_int("SELECT count(*) FROM messages WHERE length(content) = 64000"), 256);
    ck_assert_int_eq(px_int("SELECT count(DISTINCT xmin::text) FROM turns"), 1);
}
END_TEST

START_TEST(any_text_that_is_utf8_comes_back)
{
    /* Noncharacters, a private use, an emoji with joiners, combining marks, RTL, BOM. */
    static const char odd[] =
        "\xef\xbf\xbf \xf4\x8f\xbf\xbf \xee\x80\x80 "
        "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80 e\xcc\x81 "
        "\xd7\x90\xe2\x80\x8f \xef\xbb\xbf \x01\x7f \\x41 'q' \"d\"";
    static char huge[4 << 20];
    struct store_turn t = fx_turn(1, 1);

    fx_patience_ns = 30 * NS_PER_S;
    memset(huge, 'y', sizeof(huge));
    t.user_content = (struct store_text){odd, sizeof(odd) - 1};
    t.assistant_content = (struct store_text){huge, sizeof(huge)};
    fx_store_turn(st, &t);
    ck_assert_str_eq(px_text("SELECT content FROM messages WHERE role = 'user'"), odd);
    ck_assert_int_eq(px_int("SELECT length(answer) FROM turn_audit"), sizeof(huge));
}
END_TEST

START_TEST(titles_and_deletions_reach_the_thread_and_converge)
{
    for (int i = 0; i < 2; i++) {
        struct store_row rows[] = {
            fx_change_row(STORE_TITLE, 1, "first"), fx_change_row(STORE_TITLE, 1, "last"),
            fx_change_row(STORE_TITLE, 9, "none there"),
            fx_change_row(STORE_DELETE, 9, NULL), fx_change_row(STORE_TITLE, 1, "other")};

        rows[4].u.change.org = "other";
        ck_assert_int_eq(fx_write(st, rows, 5), DAC_OK);
        ck_assert_int_eq(rows[0].result, DAC_OK);
        ck_assert_int_eq(rows[1].result, DAC_OK);
        for (size_t k = 2; k < 5; k++)
            ck_assert_int_eq(rows[k].result, DAC_E_NOT_FOUND);
        ck_assert_str_eq(px_text("SELECT title FROM threads"), "last");
    }
    struct store_row gone = fx_change_row(STORE_DELETE, 1, NULL);

    ck_assert_int_eq(fx_write_one(st, gone), DAC_OK);
    gone.u.change.at_us += 1000000; /* the first deletion stands */
    ck_assert_int_eq(fx_write_one(st, gone), DAC_OK);
    ck_assert_int_eq(fx_write_one(st, fx_change_row(STORE_TITLE, 1, "too late")),
                     DAC_E_NOT_FOUND);
    ck_assert_int_eq(px_int("SELECT count(*) FROM threads WHERE title = 'last' AND "
                            "deleted_at = '2026-01-01 00:00:00.000001Z'"),
                     1);
    ck_assert_int_eq(px_int("SELECT count(*) FROM rejected"), 0);
}
END_TEST

/* --- rows that are refused ---------------------------------------------------------- */

static void taken_message_id(struct store_turn *t)
{
    t->assistant_message_id = fx_id('a', 1);
}
static void same_message_ids(struct store_turn *t)
{
    t->assistant_message_id = t->user_message_id;
}
static void broken_citations(struct store_turn *t)
{
    t->citations = fx_text("[\"a secret\"");
}
static void no_such_thread(struct store_turn *t)
{
    t->thread_id = fx_id('h', 9);
}
static void thread_of_another_org(struct store_turn *t)
{
    t->org = "other";
}
static void turn_of_another_org(struct store_turn *t)
{
    t->id = fx_id('t', 100);
}
static void nul_in_question(struct store_turn *t)
{
    t->user_content = (struct store_text){"a secret\0b", 10};
}

static const struct {
    const char *name;
    void (*spoil)(struct store_turn *t);
    enum dac_err e;
    const char *sqlstate;
} refusals[] = {
    {"taken message id", taken_message_id, DAC_E_INVALID, "23505"},
    {"same message ids", same_message_ids, DAC_E_INVALID, "23505"},
    {"broken citations", broken_citations, DAC_E_INVALID, "22P02"},
    {"no such thread", no_such_thread, DAC_E_NOT_FOUND, ""},
    {"thread of another org", thread_of_another_org, DAC_E_NOT_FOUND, ""},
    {"turn of another org", turn_of_another_org, DAC_E_INVALID, ""},
    {"NUL in the question", nul_in_question, DAC_E_INVALID, ""},
};

START_TEST(a_refused_turn_is_set_aside_and_the_others_are_in)
{
    struct store_turn other = fx_turn(100, 0);
    struct store_turn before = fx_turn(1, 1);
    struct store_turn bad = fx_turn(2, 1);
    struct store_turn after = fx_turn(3, 1);

    other.org = "other";
    fx_store_turn(st, &other);
    bad.user_content = fx_text("a secret");
    refusals[_i].spoil(&bad);
    struct store_row rows[] = {fx_turn_row(&before), fx_turn_row(&bad),
                               fx_turn_row(&after), fx_counts_row(&before.id, 7, 8),
                               fx_change_row(STORE_TITLE, 1, "new")};

    for (int i = 0; i < 2; i++) {
        ck_assert_msg(fx_write(st, rows, 5) == DAC_OK, "%s", store_error(st));
        ck_assert_msg(rows[1].result == refusals[_i].e, "%s: %s", refusals[_i].name,
                      rows[1].why);
        ck_assert_str_ne(rows[1].why, "");
        ck_assert_ptr_null(strstr(rows[1].why, "secret"));
        for (int k = 0; k < 5; k++)
            ck_assert_msg(k == 1 || rows[k].result == DAC_OK, "%s: %d: %s",
                          refusals[_i].name, k, rows[k].why);
        ck_assert_int_eq(px_int("SELECT count(*) FROM turns"), 3);
        ck_assert_int_eq(px_int("SELECT count(*) FROM messages"), 6);
        ck_assert_int_eq(px_int("SELECT sum(followers * 10 + hits) FROM turns"), 78);
        ck_assert_str_eq(px_text("SELECT title FROM threads"), "new");
        ck_assert_int_eq(px_int("SELECT count(*) FROM rejected WHERE kind = 'turn' AND "
                                "data->>'question' LIKE 'a secret%' AND reason <> ''"),
                         1);
        ck_assert_str_eq(px_text("SELECT coalesce(sqlstate, '') FROM rejected"),
                         refusals[_i].sqlstate);
    }
}
END_TEST

START_TEST(an_exception_of_a_trigger_is_the_rows_own_and_is_not_quoted)
{
    static struct store_row rows[60];

    px_exec("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF "
            "NEW.content LIKE '%bad%' THEN RAISE EXCEPTION 'no %', NEW.content; END IF; "
            "RETURN NEW; END $$; CREATE TRIGGER t BEFORE INSERT ON messages FOR EACH ROW "
            "EXECUTE FUNCTION f()");
    for (unsigned n = 1; n <= 60; n++) {
        struct store_turn t = fx_turn(n, 1);

        if (n % 20 == 7)
            t.user_content = fx_text("a bad secret");
        rows[n - 1] = fx_turn_row(&t);
    }
    ck_assert_int_eq(fx_write(st, rows, 60), DAC_OK);
    for (unsigned n = 1; n <= 60; n++) {
        ck_assert_int_eq(rows[n - 1].result, n % 20 == 7 ? DAC_E_INVALID : DAC_OK);
        ck_assert_ptr_null(strstr(rows[n - 1].why, "secret"));
    }
    ck_assert_int_eq(px_int("SELECT count(*) FROM turns"), 57);
    ck_assert_int_eq(px_int("SELECT count(*) FROM rejected WHERE sqlstate = 'P0001'"), 3);
}
END_TEST

START_TEST(what_is_to_be_set_aside_is_so_unless_it_is_stored)
{
    struct store_turn there = fx_turn(1, 1), new = fx_turn(3, 1);
    const struct store_rejected aside = {.id = fx_id('t', 2),
                                         .kind = "turn",
                                         .org = "acme",
                                         .reason = "the recorder died",
                                         .at_us = FX_START_US};
    struct store_row rows[] = {fx_turn_row(&new),
                               {.kind = STORE_REJECTED, .u.rejected = aside},
                               {.kind = STORE_REJECTED, .u.rejected = aside},
                               fx_counts_row(&there.id, 5, 6)};

    fx_store_turn(st, &there);
    rows[1].u.rejected.data = fx_text("{\"id\":1}");
    rows[2].u.rejected.id = there.id;
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(fx_write(st, rows, DAC_ARRAY_LEN(rows)), DAC_OK);
        for (size_t k = 0; k < DAC_ARRAY_LEN(rows); k++)
            ck_assert_msg(rows[k].result == DAC_OK, "%s", rows[k].why);
        ck_assert(!rows[1].u.rejected.was_stored);
        ck_assert(rows[2].u.rejected.was_stored);
    }
    ck_assert_int_eq(px_int("SELECT count(*) FROM rejected"), 1);
    ck_assert_int_eq(px_int("SELECT count(*) FROM rejected WHERE org = 'acme' AND "
                            "reason = 'the recorder died' AND data IS NOT NULL"),
                     1);
    ck_assert_int_eq(px_int("SELECT count(*) FROM turns WHERE hits = 6"), 1);
}
END_TEST

START_TEST(a_commit_that_fails_is_no_success)
{
    struct store_turn good = fx_turn(1, 1);
    struct store_turn bad = fx_turn(2, 1);

    px_exec("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF "
            "NEW.model = 'bad' THEN RAISE 'no'; END IF; RETURN NULL; END $$; "
            "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON turns DEFERRABLE INITIALLY "
            "DEFERRED FOR EACH ROW EXECUTE FUNCTION f()");
    bad.model = "bad";
    struct store_row rows[] = {fx_turn_row(&bad), fx_turn_row(&good)};

    ck_assert_int_eq(fx_write(st, rows, 2), DAC_OK);
    ck_assert_int_eq(rows[0].result, DAC_E_INVALID);
    ck_assert_int_eq(rows[1].result, DAC_OK);
    ck_assert_int_eq(px_int("SELECT count(*) FROM turns"), 1);
}
END_TEST

START_TEST(a_serialization_failure_is_tried_again)
{
    struct store_turn t = fx_turn(1, 1);

    px_exec("CREATE SEQUENCE tries; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql "
            "AS $$ BEGIN IF nextval('tries') < 3 THEN RAISE SQLSTATE '40001'; END IF; "
            "RETURN NEW; END $$; CREATE TRIGGER t BEFORE INSERT ON turns FOR EACH ROW "
            "EXECUTE FUNCTION f()");
    fx_store_turn(st, &t);
    ck_assert_int_eq(px_int("SELECT last_value FROM tries"), 3);
}
END_TEST

/* What a pooler in transaction mode does to a session's statements. */
START_TEST(lost_prepared_statements_cost_a_retry_only)
{
    struct store_turn t = fx_turn(1, 1);

    px_exec("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "DEALLOCATE ALL; RETURN NULL; END $$; CREATE TRIGGER t AFTER INSERT ON turns "
            "EXECUTE FUNCTION f()");
    fx_store_turn(st, &t);
    for (unsigned n = 2; n < 5; n++) {
        t = fx_turn(n, 1);
        fx_store_turn(st, &t);
    }
    ck_assert_int_eq(px_int("SELECT count(*) FROM turns"), 4);
}
END_TEST

/* Notes the settings of each transaction that puts a turn in. */
static void note_settings(void)
{
    px_exec(
        "CREATE TABLE seen AS SELECT 0 AS n, '' AS sync, '' AS timeout, '' AS plans, "
        "'' AS scans LIMIT 0; "
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO "
        "seen SELECT 1 + count(*), current_setting('synchronous_commit'), "
        "current_setting('statement_timeout'), current_setting('plan_cache_mode'), "
        "current_setting('enable_seqscan') FROM seen; RETURN NULL; END $$; "
        "CREATE TRIGGER t AFTER INSERT ON turns EXECUTE FUNCTION f()");
}

/* Also where the database's default would have commits lost. */
START_TEST(every_transaction_has_the_settings_it_needs)
{
    struct store_turn t;

    store_close(st);
    px_exec(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', "
        "current_database()); END $$");
    st = open_store(px_conninfo);
    wait_until_up(st);
    note_settings();
    for (unsigned n = 1; n < 9; n++) {
        t = fx_turn(n, 1);
        fx_patience_ns = n == 5 ? 10 * NS_PER_S : PATIENCE_NS;
        fx_store_turn(st, &t);
        if (n == 6) {
            int before = changes;

            end_backend();
            wait_for_change(before);
            wait_until_up(st);
        }
    }
    ck_assert_int_eq(px_int("SELECT count(*) FROM seen"), 8);
    ck_assert_int_eq(px_int("SELECT count(*) FROM seen WHERE sync <> 'on' OR plans <> "
                            "'force_generic_plan' OR scans <> 'off'"),
                     0);
    ck_assert_str_eq(px_text("SELECT string_agg(timeout, ' ' ORDER BY n) FROM seen"),
                     "1801ms 1801ms 1801ms 1801ms 9001ms 1801ms 1801ms 1801ms");
}
END_TEST

/* --- trouble ------------------------------------------------------------------------ */

struct written {
    int calls;
    enum dac_err e;
};

static void on_written(void *arg, enum dac_err e)
{
    struct written *w = arg;

    w->calls++;
    w->e = e;
}

static void wait_written(struct written *w)
{
    while (w->calls == 0)
        ck_assert_int_eq(event_base_loop(fx_base(), EVLOOP_ONCE), 0);
}

START_TEST(a_backend_that_is_ended_in_a_batch_fails_it_and_it_can_be_written_again)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_row row = fx_turn_row(&t);
    struct written w = {0};
    PGconn *locker = px_connect();

    PQclear(PQexec(locker, "BEGIN; LOCK TABLE turns"));
    store_write(st, &row, 1, PATIENCE_NS, on_written, &w);
    turn_loop_for(100 * NS_PER_MS);
    ck_assert_int_eq(w.calls, 0);
    end_backend();
    wait_written(&w);
    ck_assert_int_eq(w.e, DAC_E_CLOSED);
    ck_assert_str_ne(store_error(st), "");
    PQfinish(locker);
    ck_assert_int_eq(fx_write_one(st, row), DAC_E_CLOSED);
    wait_until_up(st);
    ck_assert_int_eq(fx_write_one(st, row), DAC_OK);
    ck_assert_int_eq(px_int("SELECT count(*) FROM turns"), 1);
}
END_TEST

START_TEST(a_lock_on_the_table_times_out_and_keeps_the_connection)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_row row = fx_turn_row(&t);
    struct written w = {0};
    PGconn *locker = px_connect();
    uint64_t t0 = clock_now_ns();

    PQclear(PQexec(locker, "BEGIN; LOCK TABLE turns"));
    store_write(st, &row, 1, NS_PER_S / 2, on_written, &w);
    wait_written(&w);
    ck_assert_int_eq(w.e, DAC_E_TIMEOUT);
    ck_assert_uint_lt(clock_now_ns() - t0, 2 * NS_PER_S);
    ck_assert(store_up(st));
    PQfinish(locker);
    ck_assert_int_eq(fx_write_one(st, row), DAC_OK);
}
END_TEST

START_TEST(a_server_that_stands_still_is_given_up_in_time)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_row row = fx_turn_row(&t);
    struct written w = {0};
    uint64_t t0 = clock_now_ns();

    px_signal_all(SIGSTOP);
    store_write(st, &row, 1, NS_PER_S / 2, on_written, &w);
    wait_written(&w);
    ck_assert_int_eq(w.e, DAC_E_TIMEOUT);
    ck_assert_uint_lt(clock_now_ns() - t0, 2 * NS_PER_S);
    ck_assert_ptr_nonnull(strstr(store_error(st), "did not answer"));
    turn_loop_for(50 * NS_PER_MS);
    ck_assert(!store_up(st)); /* nor can it be again */
    px_signal_all(SIGCONT);
    wait_until_up(st);
    ck_assert_int_eq(fx_write_one(st, row), DAC_OK);
    ck_assert_int_eq(px_int("SELECT count(*) FROM turns"), 1);
}
END_TEST

/* 4 MiB at 2 MiB/s, with a patience of half a second. */
START_TEST(a_slow_line_is_no_silence_to_who_has_time)
{
    const size_t size = 4u << 20;
    char conninfo[256];
    struct store_turn t = fx_turn(1, 1);
    struct store_row row;
    struct written w = {0};
    char *text = malloc(size);

    snprintf(conninfo, sizeof(conninfo), "host=127.0.0.1 port=%d user=postgres %s",
             px_relay_start(SIZE_MAX, 2u << 20), strstr(px_conninfo, "dbname="));
    struct store *slow = open_store(conninfo);

    wait_until_up(slow);
    memset(text, 'x', size);
    t.assistant_content = (struct store_text){text, size};
    row = fx_turn_row(&t);
    if (_i == 0)
        store_write(slow, &row, 1, NS_PER_S / 2, on_written, &w);
    else
        store_write_patiently(slow, &row, 1, NS_PER_S / 2, on_written, &w);
    wait_written(&w);
    ck_assert_int_eq(w.e, _i == 0 ? DAC_E_TIMEOUT : DAC_OK);
    ck_assert_int_eq(px_int("SELECT count(*) FROM turns"), _i);
    if (_i == 1) { /* silence is silence */
        uint64_t t0 = clock_now_ns();

        w.calls = 0;
        px_signal_all(SIGSTOP);
        store_write_patiently(slow, &row, 1, NS_PER_S / 2, on_written, &w);
        wait_written(&w);
        px_signal_all(SIGCONT);
        ck_assert_int_eq(w.e, DAC_E_TIMEOUT);
        ck_assert_uint_lt(clock_now_ns() - t0, 8 * NS_PER_S);
    }
    px_relay_stop();
    store_close(slow);
    free(text);
}
END_TEST

START_TEST(a_server_that_restarts_is_found_again)
{
    static const char *const modes[] = {"fast", "immediate"};
    struct store_turn t = fx_turn(1, 1);

    int before = changes;

    px_stop(modes[_i]);
    wait_for_change(before);
    ck_assert(!store_up(st));
    ck_assert_int_eq(fx_write_one(st, fx_turn_row(&t)), DAC_E_CLOSED);
    ck_assert_str_ne(store_error(st), "");
    px_start();
    wait_until_up(st);
    fx_store_turn(st, &t);
    ck_assert_int_gt(changes, 1);
}
END_TEST

START_TEST(a_server_that_only_reads_denies_until_it_writes_again)
{
    struct store_turn t = fx_turn(1, 1);
    int before;

    px_exec("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET "
            "default_transaction_read_only = on'; END $$");
    before = changes;
    end_backend();
    wait_for_change(before);
    wait_until_up(st);
    ck_assert_int_eq(fx_write_one(st, fx_turn_row(&t)), DAC_E_DENIED);
    ck_assert_ptr_nonnull(strstr(store_error(st), "read-only"));
    PGconn *shell = px_connect();

    PQclear(PQexec(shell, "SET default_transaction_read_only = off"));
    PQclear(PQexec(shell, "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() "
                          "|| ' RESET default_transaction_read_only'; END $$"));
    PQfinish(shell);
    wait_until_up(st);
    uint64_t until = clock_now_ns() + 10 * NS_PER_S;

    while (fx_write_one(st, fx_turn_row(&t)) != DAC_OK) {
        ck_assert(clock_now_ns() < until);
        turn_loop_for(20 * NS_PER_MS);
    }
}
END_TEST

START_TEST(a_batch_that_is_given_up_leaves_a_writer_that_works)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_row row = fx_turn_row(&t);
    struct written w = {0};

    store_write(st, &row, 1, PATIENCE_NS, on_written, &w);
    store_abort(st);
    ck_assert(!store_busy(st));
    turn_loop_for(20 * NS_PER_MS);
    ck_assert_int_eq(w.calls, 0);
    wait_until_up(st);
    ck_assert_int_eq(fx_write_one(st, row), DAC_OK);
}
END_TEST

START_TEST(a_newer_database_is_refused)
{
    px_exec("INSERT INTO schema_migrations (version, name, applied_at) VALUES (999, "
            "'future', now())");
    end_backend();
    for (int i = 0; i < 100 && !store_refused(st); i++)
        turn_loop_for(20 * NS_PER_MS);
    ck_assert(store_refused(st));
    ck_assert(!store_up(st));
    ck_assert_ptr_nonnull(strstr(store_error(st), "999"));
    px_exec("DELETE FROM schema_migrations WHERE version = 999");
    wait_until_up(st);
    ck_assert(!store_refused(st));
}
END_TEST

START_TEST(tables_that_are_gone_come_back_empty)
{
    struct store_thread h = fx_thread(2);

    px_exec("SET client_min_messages = warning; DROP SCHEMA public CASCADE; CREATE "
            "SCHEMA public");
    ck_assert_int_eq(fx_write_one(st, fx_thread_row(&h)), DAC_E_STATE);
    turn_loop_for(20 * NS_PER_MS);
    wait_until_up(st);
    ck_assert_int_eq(fx_write_one(st, fx_thread_row(&h)), DAC_OK);
    ck_assert_int_eq(px_int("SELECT count(*) FROM threads"), 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("postgres_writer");
    TCase *tc = tcase_create("writer");

    if (!px_init())
        return 0;
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_turn_is_stored_as_it_was_given);
    tcase_add_test(tc, what_is_missing_is_null);
    tcase_add_test(tc, a_replay_converges);
    tcase_add_test(tc, one_turn_twice_in_a_batch_is_one);
    tcase_add_test(tc, a_full_batch_with_large_texts_is_one_transaction);
    tcase_add_test(tc, any_text_that_is_utf8_comes_back);
    tcase_add_test(tc, titles_and_deletions_reach_the_thread_and_converge);
    tcase_add_loop_test(tc, a_refused_turn_is_set_aside_and_the_others_are_in, 0,
                        (int)DAC_ARRAY_LEN(refusals));
    tcase_add_test(tc, an_exception_of_a_trigger_is_the_rows_own_and_is_not_quoted);
    tcase_add_test(tc, what_is_to_be_set_aside_is_so_unless_it_is_stored);
    tcase_add_test(tc, a_commit_that_fails_is_no_success);
    tcase_add_test(tc, a_serialization_failure_is_tried_again);
    tcase_add_test(tc, lost_prepared_statements_cost_a_retry_only);
    tcase_add_test(tc, every_transaction_has_the_settings_it_needs);
    tcase_add_test(
        tc, a_backend_that_is_ended_in_a_batch_fails_it_and_it_can_be_written_again);
    tcase_add_test(tc, a_lock_on_the_table_times_out_and_keeps_the_connection);
    tcase_add_test(tc, a_server_that_stands_still_is_given_up_in_time);
    tcase_add_loop_test(tc, a_slow_line_is_no_silence_to_who_has_time, 0, 2);
    tcase_add_loop_test(tc, a_server_that_restarts_is_found_again, 0, 2);
    tcase_add_test(tc, a_server_that_only_reads_denies_until_it_writes_again);
    tcase_add_test(tc, a_batch_that_is_given_up_leaves_a_writer_that_works);
    tcase_add_test(tc, a_newer_database_is_refused);
    tcase_add_test(tc, tables_that_are_gone_come_back_empty);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    px_exit();
    return failed == 0 ? 0 : 1;
}
