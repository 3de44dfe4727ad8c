/*
 * The spool: what goes in comes out in order, once, after a death too; recorders that die
 * of a row; what it keeps of threads; files that are of no use.
 */
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "spool_fixture.h"
#include "store/rejected.h"
#include "store_fixture.h"

static void same_text(const struct store_text *a, const struct store_text *b)
{
    ck_assert_uint_eq(a->n, b->n);
    ck_assert((a->s == NULL) == (b->s == NULL));
    if (a->s)
        ck_assert_int_eq(memcmp(a->s, b->s, a->n), 0);
}

START_TEST(everything_comes_out_as_it_went_in)
{
    struct store_thread h = fx_thread(1);
    struct store_turn t = fx_turn(1, 1);
    struct store_turn loose = fx_turn(2, 0);
    struct store_row in[] = {fx_thread_row(&h),
                             fx_turn_row(&t),
                             fx_turn_row(&loose),
                             fx_counts_row(&t.id, 7, 9),
                             fx_change_row(STORE_TITLE, 1, "new"),
                             fx_change_row(STORE_DELETE, 1, NULL),
                             fx_alias_row(4, 2, 77)};
    struct spool_batch b;

    t.assistant_content = fx_text("an answer");
    t.tool_calls = fx_text("[{\"id\":1}]");
    in[1] = fx_turn_row(&t);
    ck_assert_int_eq(spool_put(sx_spool, in, DAC_ARRAY_LEN(in)), DAC_OK);
    ck_assert_uint_eq(sx_rows_left(), DAC_ARRAY_LEN(in));

    /* Another recorder finds it all. */
    spool_close(sx_spool);
    sx_spool = sx_open(64u << 20, 8);
    ck_assert_uint_eq(sx_rows_left(), DAC_ARRAY_LEN(in));
    ck_assert_int_eq(spool_next(sx_spool, 100, 1u << 20, &b), DAC_OK);
    ck_assert_uint_eq(b.n, DAC_ARRAY_LEN(in));
    for (size_t i = 0; i < b.n; i++)
        ck_assert_int_eq(b.rows[i].kind, in[i].kind);
    ck_assert(id_equal(&b.rows[0].u.thread.id, &h.id));
    ck_assert_str_eq(b.rows[0].u.thread.org, h.org);
    same_text(&b.rows[0].u.thread.title, &h.title);
    ck_assert_int_eq(b.rows[0].u.thread.created_us, h.created_us);

    const struct store_turn *o = &b.rows[1].u.turn;
    ck_assert(id_equal(&o->id, &t.id) && id_equal(&o->thread_id, &t.thread_id));
    ck_assert(id_equal(&o->user_message_id, &t.user_message_id));
    ck_assert(id_equal(&o->assistant_message_id, &t.assistant_message_id));
    ck_assert_str_eq(o->org, t.org);
    ck_assert_str_eq(o->model, t.model);
    ck_assert_str_eq(o->status, t.status);
    ck_assert_str_eq(o->fetcher, t.fetcher);
    same_text(&o->user_content, &t.user_content);
    same_text(&o->assistant_content, &t.assistant_content);
    same_text(&o->citations, &t.citations);
    same_text(&o->tool_calls, &t.tool_calls);
    ck_assert_int_eq(memcmp(o->key_digest, t.key_digest, sizeof t.key_digest), 0);
    ck_assert_int_eq(o->created_us, t.created_us);
    ck_assert_int_eq(o->finished_us, t.finished_us);
    ck_assert(o->latency_ms == t.latency_ms && o->ttft_ms == t.ttft_ms);
    ck_assert_int_eq(o->followers, 7); /* the counts came while it was here */
    ck_assert(id_is_zero(&b.rows[2].u.turn.thread_id));
    ck_assert_int_eq(b.rows[3].u.counts.hits, 9);
    ck_assert_str_eq(b.rows[4].u.change.title.s, "new");
    ck_assert_int_eq(b.rows[5].u.change.at_us, in[5].u.change.at_us);
    const struct store_alias *key = &b.rows[6].u.alias;
    ck_assert(id_equal(&key->turn, &loose.id) && key->created_us == 77);
    ck_assert_str_eq(key->org, "acme");
    ck_assert_mem_eq(key->key_digest, in[6].u.alias.key_digest, 32);
    ck_assert_mem_eq(key->body_digest, in[6].u.alias.body_digest, 32);

    ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
    spool_batch_free(&b);
    ck_assert_uint_eq(sx_rows_left(), 0);
    ck_assert_int_eq(spool_next(sx_spool, 100, 1u << 20, &b), DAC_OK);
    ck_assert_uint_eq(b.n, 0);
    spool_batch_free(&b);
}
END_TEST

START_TEST(batches_are_bounded_and_in_order)
{
    struct spool_batch b;
    unsigned seen = 0;

    for (unsigned n = 1; n <= 10; n++)
        sx_put_turn(n, 1);
    for (;;) {
        ck_assert_int_eq(spool_next(sx_spool, 4, 1u << 20, &b), DAC_OK);
        ck_assert_uint_le(b.n, 4);
        for (size_t i = 0; i < b.n; i++) {
            struct id want = fx_turn(++seen, 1).id;
            ck_assert(id_equal(&b.rows[i].u.turn.id, &want));
        }
        size_t n = b.n;
        ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
        spool_batch_free(&b);
        if (n == 0)
            break;
    }
    ck_assert_uint_eq(seen, 10);

    /* One row at least, however many bytes it has. */
    sx_put_turn(11, 1);
    sx_put_turn(12, 1);
    ck_assert_int_eq(spool_next(sx_spool, 4, 1, &b), DAC_OK);
    ck_assert_uint_eq(b.n, 1);
    spool_batch_free(&b);
}
END_TEST

START_TEST(what_finds_no_thread_is_set_aside)
{
    struct spool_batch b;

    sx_put_turn(1, 1);
    sx_put_turn(2, 1);
    ck_assert_int_eq(spool_next(sx_spool, 4, 1u << 20, &b), DAC_OK);
    b.rows[0].result = DAC_E_NOT_FOUND;
    snprintf(b.rows[0].why, sizeof b.rows[0].why, "no such thread");
    ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
    spool_batch_free(&b);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected WHERE kind = 'turn' AND "
                            "reason = 'no such thread'"),
                     1);
    ck_assert_uint_eq(sx_rows_left(), 0);
}
END_TEST

START_TEST(a_row_of_another_org_is_refused)
{
    struct store_turn t = fx_turn(1, 1);
    struct store_row row = fx_turn_row(&t);

    sx_put_turn(1, 1);
    row.u.turn.org = "other";
    row.result = DAC_OK;
    ck_assert_int_eq(spool_put(sx_spool, &row, 1), DAC_OK);
    ck_assert_int_ne(row.result, DAC_OK);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_queue WHERE kind = 1"), 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected WHERE kind = 'turn'"), 1);

    /* That, too, is to reach PostgreSQL, and leaves with the queue. */
    struct spool_batch b;
    struct id refused = fx_id('t', 1);

    ck_assert_int_eq(spool_next(sx_spool, 4, 1u << 20, &b), DAC_OK);
    ck_assert_uint_eq(b.n, 2);
    ck_assert_int_eq(b.rows[1].kind, STORE_REJECTED);
    const struct store_rejected *j = &b.rows[1].u.rejected;
    ck_assert(id_equal(&j->id, &refused));
    ck_assert_str_eq(j->kind, "turn");
    ck_assert_str_eq(j->org, "other");
    ck_assert_ptr_nonnull(strstr(j->reason, "in its org"));
    ck_assert_ptr_nonnull(strstr(j->data.s, "\"question\""));
    ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
    spool_batch_free(&b);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected"), 0);
    ck_assert_uint_eq(sx_rows_left(), 0);
}
END_TEST

/* --- recorders that die --------------------------------------------------------------
 */

/* How a recorder ends that has rows in hand. */
enum ending { KILLED_AT_WORK, KILLED_WAITING, PUT_BACK };

/* Another recorder takes the next rows, at most forty, and ends; how many they were. */
static unsigned recorder_ends(enum ending how)
{
    int status;

    spool_close(sx_spool);
    sx_spool = NULL;
    pid_t pid = fork();

    if (pid == 0) {
        struct spool *own = sx_open(64u << 20, 8);
        struct spool_batch b;

        if (spool_next(own, 40, 1u << 20, &b) != DAC_OK)
            _exit(99);
        if (how == KILLED_WAITING)
            spool_wait(own);
        if (how == PUT_BACK)
            spool_put_back(own);
        _exit(b.set_aside ? 50 : (int)b.n);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    sx_spool = sx_open(64u << 20, 8);
    return (unsigned)WEXITSTATUS(status);
}

/* The next batch: `n` rows, the first of which is turn `first`. */
static void take(struct spool_batch *b, size_t n, unsigned first)
{
    struct id want = fx_turn(first, 1).id;

    ck_assert_int_eq(spool_next(sx_spool, 40, 1u << 20, b), DAC_OK);
    ck_assert_uint_eq(b->n, n);
    ck_assert(id_equal(rejected_id(&b->rows[0]), &want));
}

static void finish(struct spool_batch *b)
{
    ck_assert_int_eq(spool_done(sx_spool, b), DAC_OK);
    spool_batch_free(b);
}

static void put_turns(unsigned n)
{
    for (unsigned i = 1; i <= n; i++)
        sx_put_turn(i, 1);
}

START_TEST(a_row_that_recorders_die_of_is_found)
{
    struct spool_batch b;

    put_turns(60);
    ck_assert_uint_eq(recorder_ends(KILLED_AT_WORK), 40);
    take(&b, 16, 1); /* it is not among these */
    finish(&b);
    ck_assert_uint_eq(recorder_ends(KILLED_AT_WORK), 16);
    take(&b, 1, 17); /* nor this */
    finish(&b);
    ck_assert_uint_eq(recorder_ends(KILLED_AT_WORK), 1);
    ck_assert_uint_eq(recorder_ends(KILLED_AT_WORK), 1);
    take(&b, 1, 18);
    ck_assert(b.set_aside);
    ck_assert_int_eq(b.rows[0].kind, STORE_REJECTED);
    ck_assert_str_eq(b.rows[0].u.rejected.kind, "turn");
    ck_assert_str_eq(b.rows[0].u.rejected.org, "acme");
    ck_assert_ptr_nonnull(strstr(b.rows[0].u.rejected.reason, "recorder died"));
    ck_assert_ptr_nonnull(strstr(b.rows[0].u.rejected.data.s, "\"question\""));
    finish(&b);
    for (unsigned n = 19; n <= 32; n++) { /* innocent */
        take(&b, 1, n);
        ck_assert(!b.set_aside);
        finish(&b);
    }
    take(&b, 16, 33);
    finish(&b);
    take(&b, 12, 49);
    finish(&b);
    ck_assert_uint_eq(sx_rows_left(), 0);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_deaths"), 0);
}
END_TEST

/* Those before and behind it go on in their batches. */
START_TEST(suspects_in_the_middle_are_come_to_in_their_turn)
{
    struct spool_batch b;

    put_turns(60);
    fx_exec("INSERT INTO spool_deaths SELECT seq, 4 FROM spool_queue WHERE seq BETWEEN "
            "21 AND 26; INSERT INTO spool_deaths SELECT seq, 8 FROM spool_queue WHERE "
            "seq = 27");
    spool_close(sx_spool);
    sx_spool = sx_open(64u << 20, 8);
    take(&b, 20, 1);
    finish(&b);
    take(&b, 6, 21);
    finish(&b);
    take(&b, 1, 27);
    finish(&b);
    take(&b, 33, 28);
    finish(&b);
}
END_TEST

START_TEST(one_that_kills_while_it_is_set_aside_is_left)
{
    struct spool_batch b;

    put_turns(3);
    for (int i = 0; i < 2; i++)
        ck_assert_uint_eq(recorder_ends(KILLED_AT_WORK), 3);
    for (int i = 0; i < 2; i++)
        ck_assert_uint_eq(recorder_ends(KILLED_AT_WORK), 1);
    ck_assert_uint_eq(recorder_ends(KILLED_AT_WORK), 50);
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stderr)); /* what is logged of it */
    take(&b, 1, 2);
    finish(&b);
    take(&b, 1, 3);
    finish(&b);
    ck_assert_uint_eq(sx_rows_left(), 0);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_left WHERE kind = 'turn' AND org "
                            "= 'acme' AND id = '74000000-0000-0000-0000-000000000001'"),
                     1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_left WHERE data ->> 'question' = "
                            "'question' AND data ->> 'answer' = 'answer' AND data ->> "
                            "'model' = 'small' AND data ->> 'thread_id' LIKE '68%'"),
                     1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_deaths"), 0);
}
END_TEST

START_TEST(who_ends_as_it_should_is_no_death)
{
    struct spool_batch b;

    put_turns(50);
    for (int i = 0; i < 20; i++)
        ck_assert_uint_eq(recorder_ends(PUT_BACK), 40);
    take(&b, 40, 1);
    finish(&b);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_deaths"), 0);
}
END_TEST

/* What waits for a lock in PostgreSQL while recorders are killed is no suspect. */
START_TEST(who_dies_while_it_waits_hardly_dies_of_it)
{
    struct spool_batch b;

    put_turns(50);
    ck_assert_uint_eq(recorder_ends(KILLED_WAITING), 40);
    for (int i = 0; i < 7; i++)
        ck_assert_uint_eq(recorder_ends(KILLED_WAITING), 16);
    for (int i = 0; i < 7; i++)
        ck_assert_uint_eq(recorder_ends(KILLED_WAITING), 1);
    take(&b, 1, 1);
    ck_assert(!b.set_aside);
    finish(&b);
    take(&b, 1, 2);
    ck_assert(!b.set_aside);
    finish(&b);
}
END_TEST

/* --- what is kept ------------------------------------------------------------------- */

START_TEST(threads_are_kept_by_use)
{
    for (unsigned thread = 1; thread <= 12; thread++) {
        struct store_thread h = fx_thread(thread);
        struct store_row row = fx_thread_row(&h);
        row.result = DAC_OK;
        spool_keep(sx_spool, &row, 1);
        sx_keep_turn(thread, thread);
    }
    sx_put_turn(100, 2); /* in the queue: it stays, whatever comes */
    sx_keep_turn(101, 1);
    spool_tidy(sx_spool);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_threads"), 8);
    struct id first = fx_thread(1).id, second = fx_thread(2).id, third = fx_thread(3).id;
    ck_assert(spool_knows_history(sx_spool, &first));
    ck_assert(spool_knows_history(sx_spool, &second));
    ck_assert(!spool_knows_history(sx_spool, &third));
    ck_assert_int_eq(
        fx_int("SELECT count(*) FROM turns t WHERE NOT EXISTS (SELECT 1 FROM "
               "threads h WHERE h.id = t.thread_id)"),
        0);
    ck_assert_uint_eq(sx_rows_left(), 1);
}
END_TEST

START_TEST(how_deep_a_thread_is_known)
{
    struct id thread = fx_thread(1).id;

    sx_keep_turn(1, 1); /* a thread that was there before: older turns may be missing */
    ck_assert(!spool_knows_history(sx_spool, &thread));
    spool_filled(sx_spool, &thread, true);
    ck_assert(spool_knows_history(sx_spool, &thread));
    ck_assert_int_eq(fx_int("SELECT depth FROM spool_threads"), 2);
    for (unsigned n = 2; n <= 9; n++)
        sx_keep_turn(n, 1);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 4);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 8);
    ck_assert_int_eq(fx_int("SELECT depth FROM spool_threads"), 1);
    ck_assert(spool_knows_history(sx_spool, &thread));
}
END_TEST

START_TEST(turns_without_a_thread_leave_with_the_queue)
{
    struct spool_batch b;

    sx_put_turn(1, 0);
    ck_assert_int_eq(spool_next(sx_spool, 4, 1u << 20, &b), DAC_OK);
    ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
    spool_batch_free(&b);
    spool_tidy(sx_spool);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 0);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM messages"), 0);
}
END_TEST

/* --- idempotency keys --------------------------------------------------------------- */

static void put(struct store_row row, enum dac_err want)
{
    row.result = DAC_OK;
    ck_assert_msg(spool_put(sx_spool, &row, 1) == DAC_OK, "%s", spool_error(sx_spool));
    ck_assert_int_eq(row.result, want);
}

static void keep(struct store_row row)
{
    row.result = DAC_OK;
    spool_keep(sx_spool, &row, 1);
}

/* Whether key `key` stands for turn `turn` (0: for none) among those remembered. */
static bool remembers(unsigned key, unsigned turn)
{
    char sql[256], id[ID_TEXT_SIZE], hex[65];
    struct id t = fx_id('t', turn);
    uint8_t digest[32];

    fx_digest(key, digest);
    bytes_hex(digest, sizeof digest, hex);
    id_format(&t, id);
    snprintf(sql, sizeof sql,
             "SELECT count(*) FROM spool_aliases WHERE org = 'acme' AND key_digest = "
             "x'%s' AND (%u = 0 OR turn_id = '%s')",
             hex, turn, id);
    return fx_int(sql) == (turn != 0);
}

static void drain_all(enum dac_err what_becomes_of_keys)
{
    struct spool_batch b;

    ck_assert_int_eq(spool_next(sx_spool, 1000, 64u << 20, &b), DAC_OK);
    for (size_t i = 0; i < b.n; i++)
        b.rows[i].result = b.rows[i].kind == STORE_ALIAS ? what_becomes_of_keys : DAC_OK;
    ck_assert_int_eq(spool_done(sx_spool, &b), DAC_OK);
    spool_batch_free(&b);
    ck_assert_uint_eq(sx_rows_left(), 0);
}

START_TEST(keys_are_remembered_queued_or_kept)
{
    sx_put_turn(1, 1);
    put(fx_alias_row(1, 1, 1), DAC_OK);
    put(fx_alias_row(2, 99, 1),
        DAC_OK); /* its turn is in PostgreSQL, as far as is known */
    keep(fx_alias_row(3, 98, 1));
    ck_assert(remembers(1, 1) && remembers(2, 99) && remembers(3, 98));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_queue WHERE kind = 6"), 2);
    spool_close(sx_spool);
    sx_spool = sx_open(64u << 20, 8);
    drain_all(DAC_OK);
    spool_tidy(sx_spool);
    ck_assert(remembers(1, 1) && remembers(2, 99) && remembers(3, 98));
}
END_TEST

START_TEST(the_first_key_is_remembered_for_a_day)
{
    const int64_t at = FX_START_US;

    put(fx_alias_row(1, 1, at), DAC_OK);
    put(fx_alias_row(1, 2, at + STORE_ALIAS_LIFE_US), DAC_OK);
    ck_assert(remembers(1, 1));
    put(fx_alias_row(1, 3, at + STORE_ALIAS_LIFE_US + 1), DAC_OK);
    ck_assert(remembers(1, 3));
    put(fx_alias_row(1, 1, at), DAC_OK);
    ck_assert(remembers(1, 3));
    /* All of them are for PostgreSQL to decide upon. */
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_queue WHERE kind = 6"), 4);
}
END_TEST

START_TEST(a_key_of_a_turn_that_was_refused_is_refused)
{
    struct store_turn t = fx_turn(2, 1);

    sx_put_turn(1, 1);
    t.user_message_id = fx_turn(1, 1).user_message_id;
    put(fx_turn_row(&t), DAC_E_INVALID);
    put(fx_alias_row(1, 2, 1), DAC_E_NOT_FOUND);
    ck_assert(remembers(1, 0));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_queue WHERE kind = 6"), 0);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected"), 1);
}
END_TEST

static const enum dac_err refusals[] = {DAC_E_NOT_FOUND, DAC_E_INVALID};

START_TEST(a_key_that_postgresql_refused_is_forgotten)
{
    put(fx_alias_row(1, 1, 1), DAC_OK);
    put(fx_alias_row(2, 2, 1), DAC_OK);
    drain_all(DAC_OK);
    put(fx_alias_row(1, 9, 2), DAC_OK); /* loses against the one before */
    put(fx_alias_row(3, 9, 2), DAC_OK);
    drain_all(refusals[_i]);
    ck_assert(remembers(1, 1) && remembers(2, 2) && remembers(3, 0));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM rejected"), 0);
}
END_TEST

START_TEST(the_oldest_keys_are_forgotten_first)
{
    for (unsigned n = 1; n <= 66; n++) /* 64, and a margin of one */
        keep(fx_alias_row(n, 1, 100 - n));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_aliases"), 66);
    spool_tidy(sx_spool);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_aliases"), 64);
    ck_assert(remembers(1, 0) && remembers(2, 0) && remembers(3, 1) && remembers(66, 1));

    /* While something waits in the queue none is. */
    for (unsigned n = 101; n <= 300; n++)
        put(fx_alias_row(n, 1, 1), DAC_OK);
    spool_tidy(sx_spool);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_aliases"), 264);
    drain_all(DAC_OK);
    spool_tidy(sx_spool);
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_aliases"), 64);
    ck_assert(remembers(236, 0) && remembers(237, 1) && remembers(300, 1));

    /* Nor does a batch that came to nothing change the count. */
    struct store_row rows[] = {fx_alias_row(400, 1, 1), fx_alias_row(402, 1, 1)};
    rows[0].result = rows[1].result = DAC_OK;
    fx_exec("CREATE TRIGGER no BEFORE INSERT ON spool_queue WHEN NEW.key_digest IS NOT "
            "NULL BEGIN SELECT raise(ABORT, 'no'); END");
    ck_assert_int_ne(spool_put(sx_spool, rows, 2), DAC_OK);
    fx_exec("DROP TRIGGER no");
    ck_assert(remembers(400, 0));
    keep(fx_alias_row(401, 1, 1));
    spool_tidy(sx_spool); /* 65: within the margin */
    ck_assert_int_eq(fx_int("SELECT count(*) FROM spool_aliases"), 65);
}
END_TEST

START_TEST(keys_are_kept_where_threads_are_not)
{
    char *text = malloc(64u << 10);

    memset(text, 'x', 64u << 10);
    spool_close(sx_spool);
    sx_spool = sx_open(2u << 20, 1000);
    for (unsigned n = 1; n <= 16; n++) {
        struct store_turn t = fx_turn(n, n);
        t.assistant_content = (struct store_text){text, 64u << 10};
        put(fx_turn_row(&t), DAC_OK);
    }
    struct store_turn t = fx_turn(20, 20);
    struct store_row rows[] = {fx_turn_row(&t), fx_alias_row(1, 20, 1)};
    rows[0].result = rows[1].result = DAC_OK;
    spool_keep(sx_spool, rows, 2);
    ck_assert(remembers(1, 20));
    ck_assert_int_eq(fx_int("SELECT count(*) FROM turns"), 16);
    free(text);
}
END_TEST

static size_t set_aside(void)
{
    DIR *d = opendir(fx_dir);
    struct dirent *e;
    size_t n = 0;

    while ((e = readdir(d)) != NULL)
        n += strstr(e->d_name, ".aside-") != NULL && !strstr(e->d_name, "-wal") &&
             !strstr(e->d_name, "-shm");
    closedir(d);
    return n;
}

static const char *const useless[] = {"torn", "foreign", "newer"};

START_TEST(a_file_of_no_use_is_set_aside)
{
    sx_put_turn(1, 1);
    spool_close(sx_spool);
    if (strcmp(useless[_i], "torn") == 0) {
        FILE *f = fopen(fx_db, "r+");
        fputs("this is no database, it was torn apart long ago", f);
        fclose(f);
    } else if (strcmp(useless[_i], "foreign") == 0) {
        fx_exec("PRAGMA application_id = 77");
    } else {
        fx_exec("PRAGMA user_version = 999");
    }
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stderr)); /* what is logged of it */
    sx_spool = sx_open(64u << 20, 8);
    ck_assert_uint_eq(set_aside(), 1);
    ck_assert_uint_eq(sx_rows_left(), 0);
    sx_put_turn(2, 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("spool");
    TCase *t = tcase_create("spool");
    SRunner *r = srunner_create(s);

    tcase_add_checked_fixture(t, sx_setup, sx_teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, everything_comes_out_as_it_went_in);
    tcase_add_test(t, batches_are_bounded_and_in_order);
    tcase_add_test(t, what_finds_no_thread_is_set_aside);
    tcase_add_test(t, a_row_of_another_org_is_refused);
    tcase_add_test(t, a_row_that_recorders_die_of_is_found);
    tcase_add_test(t, suspects_in_the_middle_are_come_to_in_their_turn);
    tcase_add_test(t, one_that_kills_while_it_is_set_aside_is_left);
    tcase_add_test(t, who_ends_as_it_should_is_no_death);
    tcase_add_test(t, who_dies_while_it_waits_hardly_dies_of_it);
    tcase_add_test(t, threads_are_kept_by_use);
    tcase_add_test(t, how_deep_a_thread_is_known);
    tcase_add_test(t, turns_without_a_thread_leave_with_the_queue);
    tcase_add_test(t, keys_are_remembered_queued_or_kept);
    tcase_add_test(t, the_first_key_is_remembered_for_a_day);
    tcase_add_test(t, a_key_of_a_turn_that_was_refused_is_refused);
    tcase_add_loop_test(t, a_key_that_postgresql_refused_is_forgotten, 0,
                        DAC_ARRAY_LEN(refusals));
    tcase_add_test(t, the_oldest_keys_are_forgotten_first);
    tcase_add_test(t, keys_are_kept_where_threads_are_not);
    tcase_add_loop_test(t, a_file_of_no_use_is_set_aside, 0, DAC_ARRAY_LEN(useless));
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
