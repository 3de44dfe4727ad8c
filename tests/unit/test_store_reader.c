/*
 * What a worker reads: pages, history, turns, other orgs, order and timing of callbacks,
 * cancelling, large and odd texts. All of it is asked of both kinds of store.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "postgres_fixture.h"
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

static bool is(const struct id *id, char kind, unsigned n)
{
    struct id want = fx_id(kind, n);

    return id_equal(id, &want);
}

/* --- threads ------------------------------------------------------------------------ */

static void ask_thread(const char *org, unsigned n, struct fx_answer *a)
{
    struct id id = fx_id('h', n);

    memset(a, 0, sizeof(*a));
    ck_assert_ptr_nonnull(store_read_thread(reader, org, &id, fx_on_thread, a));
    ck_assert_int_eq(a->calls, 0);
    fx_wait(base, a);
}

START_TEST(a_thread_is_found_by_its_org_alone)
{
    static struct fx_answer a;

    fx_store_thread(st, 1);
    ask_thread("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_OK);
    ck_assert(is(&a.ids[0], 'h', 1) && id_is_zero(&a.last_turn));
    ck_assert_str_eq(a.texts[0], "a title");
    ask_thread("other", 1, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    ask_thread("acme", 2, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);

    for (unsigned n = 1; n <= 3; n++) {
        struct store_turn t = fx_turn(4 - n, 1); /* the newest first */

        fx_store_turn(st, &t);
    }
    ask_thread("acme", 1, &a);
    ck_assert(is(&a.last_turn, 't', 3));
    fx_exec("UPDATE threads SET deleted_at = created_at");
    ask_thread("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
}
END_TEST

static void ask_threads(const char *org, const struct id *after, size_t limit,
                        struct fx_answer *a)
{
    static const struct id zero;

    memset(a, 0, sizeof(*a));
    ck_assert_ptr_nonnull(store_read_threads(reader, org, after != NULL ? after : &zero,
                                             limit, fx_on_threads, a));
    fx_wait(base, a);
}

START_TEST(threads_are_paged_newest_first)
{
    static struct fx_answer a;
    static const struct {
        unsigned after; /* 0: none */
        size_t limit, n;
        unsigned first;
        bool more;
    } table[] = {
        {0, 10, 7, 7, false}, {0, 7, 7, 7, false}, {0, 3, 3, 7, true},
        {5, 3, 3, 4, true},   {5, 4, 4, 4, false}, {2, 9, 1, 1, false},
        {1, 9, 0, 0, false},  {0, 0, 0, 0, true},
    };

    for (unsigned n = 1; n <= 7; n++)
        fx_store_thread(st, n);
    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        struct id after = fx_id('h', table[i].after);

        ask_threads("acme", table[i].after != 0 ? &after : NULL, table[i].limit, &a);
        ck_assert_int_eq(a.e, DAC_OK);
        ck_assert_msg(a.n == table[i].n && a.more == table[i].more, "row %zu: %zu rows",
                      i, a.n);
        for (size_t k = 0; k < a.n; k++)
            ck_assert(is(&a.ids[k], 'h', table[i].first - (unsigned)k));
    }
    struct id after = fx_id('h', 99);

    ask_threads("acme", &after, 5, &a);
    ck_assert_int_eq(a.e, DAC_E_INVALID);
    ask_threads("other", NULL, 5, &a);
    ck_assert(a.e == DAC_OK && a.n == 0 && !a.more);
    /* A page goes on behind a thread that was deleted meanwhile. */
    fx_exec(
        "UPDATE threads SET deleted_at = created_at WHERE CAST(id AS TEXT) LIKE '%5'");
    after = fx_id('h', 5);
    ask_threads("acme", &after, 2, &a);
    ck_assert(a.n == 2 && is(&a.ids[0], 'h', 4));
    ask_threads("acme", NULL, 9, &a);
    ck_assert_uint_eq(a.n, 6);
}
END_TEST

START_TEST(a_page_is_bounded_whatever_is_asked)
{
    static struct fx_answer a;

    static struct store_row rows[230];

    for (unsigned n = 1; n <= 230; n++) {
        struct store_thread t = fx_thread(n);

        rows[n - 1] = fx_thread_row(&t);
    }
    ck_assert_int_eq(fx_write(st, rows, 230), DAC_OK);
    ask_threads("acme", NULL, SIZE_MAX, &a);
    ck_assert_uint_eq(a.n, 200);
    ck_assert(a.more);
}
END_TEST

/* --- messages ----------------------------------------------------------------------- */

static void ask_messages(const char *org, unsigned thread, const struct id *after,
                         size_t limit, struct fx_answer *a)
{
    static const struct id zero;
    struct id id = fx_id('h', thread);

    memset(a, 0, sizeof(*a));
    ck_assert_ptr_nonnull(store_read_messages(
        reader, org, &id, after != NULL ? after : &zero, limit, fx_on_messages, a));
    ck_assert_int_eq(a->calls, 0);
    fx_wait(base, a);
}

/* Turns 1 to 5 of thread 1; the third one failed and has no answer. */
static void five_turns(void)
{
    fx_store_thread(st, 1);
    fx_store_thread(st, 2);
    for (unsigned n = 1; n <= 5; n++) {
        struct store_turn t = fx_turn(n, 1);

        if (n == 3) {
            t.status = "failed";
            t.finish_reason = NULL;
            t.error_code = "upstream_500";
            t.assistant_content.s = NULL;
        }
        fx_store_turn(st, &t);
    }
}

START_TEST(messages_are_paged_in_the_order_of_their_turns)
{
    static struct fx_answer a;
    static const struct {
        char after; /* '-': none */
        unsigned n;
        size_t limit;
        const char *roles;
        unsigned first;
        bool more;
    } table[] = {
        {'-', 0, 50, "uauauuaua", 1, false}, {'-', 0, 9, "uauauuaua", 1, false},
        {'-', 0, 3, "uau", 1, true},         {'u', 1, 2, "au", 1, true},
        {'u', 3, 9, "uaua", 4, false},       {'a', 2, 2, "uu", 3, true},
        {'a', 5, 9, "", 0, false},           {'u', 5, 1, "a", 5, false},
    };

    five_turns();
    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        struct id after = fx_id(table[i].after, table[i].n);

        ask_messages("acme", 1, table[i].after != '-' ? &after : NULL, table[i].limit,
                     &a);
        ck_assert_int_eq(a.e, DAC_OK);
        ck_assert_msg(strcmp(a.roles, table[i].roles) == 0, "row %zu: %s", i, a.roles);
        ck_assert_int_eq(a.more, table[i].more);
        if (a.n > 0)
            ck_assert(is(&a.ids[0], a.roles[0], table[i].first));
    }
    ask_messages("other", 1, NULL, 9, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    ask_messages("acme", 3, NULL, 9, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    ask_messages("acme", 2, NULL, 9, &a);
    ck_assert(a.e == DAC_OK && a.n == 0 && !a.more);
    struct id elsewhere = fx_id('u', 1); /* a message, but of thread 1 */

    ask_messages("acme", 2, &elsewhere, 9, &a);
    ck_assert_int_eq(a.e, DAC_E_INVALID);
}
END_TEST

START_TEST(a_page_of_huge_messages_ends_early)
{
    static struct fx_answer a;
    size_t n = 5u << 20;
    char *big = malloc(n);

    memset(big, 'x', n);
    fx_store_thread(st, 1);
    for (unsigned k = 1; k <= 3; k++) {
        struct store_turn t = fx_turn(k, 1);

        t.assistant_content = (struct store_text){big, n};
        fx_store_turn(st, &t);
    }
    free(big);
    ask_messages("acme", 1, NULL, 200, &a);
    ck_assert_str_eq(a.roles, "uaua");
    ck_assert(a.more);
    struct id after = fx_id('a', 2);

    ask_messages("acme", 1, &after, 200, &a);
    ck_assert_str_eq(a.roles, "ua");
    ck_assert(!a.more);
}
END_TEST

/* --- history ------------------------------------------------------------------------ */

static void ask_history(unsigned thread, const struct id *until, size_t messages,
                        size_t bytes, struct fx_answer *a)
{
    struct id id = fx_id('h', thread);

    memset(a, 0, sizeof(*a));
    ck_assert_ptr_nonnull(store_read_history(reader, "acme", &id, until, messages, bytes,
                                             fx_on_messages, a));
    ck_assert_int_eq(a->calls, 0);
    fx_wait(base, a);
}

/* Each turn has 14 bytes, "question" and "answer"; turn 3 has no answer. */
START_TEST(history_keeps_the_newest_whole_turns)
{
    static struct fx_answer a;
    static const struct {
        unsigned until;
        size_t messages, bytes;
        const char *turns; /* oldest first */
        bool more;
    } table[] = {
        {5, 100, 1000, "1245", false},
        {5, 8, 56, "1245", false},
        {5, 7, 1000, "245", true},
        {5, 6, 1000, "245", true},
        {5, 100, 55, "245", true},
        {5, 100, 42, "245", true},
        {5, 100, 41, "45", true},
        {5, 2, 1000, "5", true},
        {5, 1, 1000, "", true},
        {5, 0, 1000, "", true},
        {5, 100, 13, "", true},
        {5, 100, 0, "", true},
        {4, 100, 1000, "124", false},
        {3, 100, 1000, "12", false},
        {2, 100, 1000, "12", false},
        {1, 100, 1000, "1", false},
        {5, SIZE_MAX, SIZE_MAX, "1245", false},
    };

    five_turns();
    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        struct id until = fx_id('t', table[i].until);

        ask_history(1, &until, table[i].messages, table[i].bytes, &a);
        ck_assert_int_eq(a.e, DAC_OK);
        ck_assert_msg(a.n == 2 * strlen(table[i].turns) && a.more == table[i].more,
                      "row %zu: %zu messages", i, a.n);
        for (size_t k = 0; k < a.n; k++) {
            unsigned turn = (unsigned)(table[i].turns[k / 2] - '0');

            ck_assert(is(&a.ids[k], k % 2 == 0 ? 'u' : 'a', turn));
            ck_assert_str_eq(a.texts[k], k % 2 == 0 ? "question" : "answer");
        }
    }
}
END_TEST

START_TEST(history_needs_its_thread_and_turn)
{
    static struct fx_answer a;
    static const struct id zero;
    struct id until = fx_id('t', 5);

    five_turns();
    ask_history(1, &zero, 10, 1000, &a);
    ck_assert(a.e == DAC_OK && a.n == 0 && !a.more);
    ask_history(2, &until, 10, 1000, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    ask_history(9, &zero, 10, 1000, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    until = fx_id('t', 77);
    ask_history(1, &until, 10, 1000, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
}
END_TEST

START_TEST(turns_of_one_moment_have_one_order)
{
    static struct fx_answer a;

    fx_store_thread(st, 1);
    for (unsigned n = 1; n <= 4; n++) {
        struct store_turn t = fx_turn(5 - n, 1);

        t.created_us = FX_START_US;
        fx_store_turn(st, &t);
    }
    struct id until = fx_id('t', 3);

    ask_history(1, &until, 4, 1000, &a);
    ck_assert(a.n == 4 && a.more && is(&a.ids[0], 'u', 2) && is(&a.ids[2], 'u', 3));
    until = fx_id('a', 2);
    ask_messages("acme", 1, &until, 9, &a);
    ck_assert(a.n == 4 && is(&a.ids[0], 'u', 3) && is(&a.ids[3], 'a', 4));
}
END_TEST

/* --- one turn ----------------------------------------------------------------------- */

static void ask_turn(const char *org, unsigned n, struct fx_answer *a)
{
    struct id id = fx_id('t', n);

    memset(a, 0, sizeof(*a));
    ck_assert_ptr_nonnull(store_read_turn(reader, org, &id, fx_on_turn, a));
    fx_wait(base, a);
}

START_TEST(a_turn_comes_back_as_it_was_stored)
{
    static struct fx_answer a;
    struct store_turn t = fx_turn(1, 1);

    fx_store_thread(st, 1);
    t.citations = fx_text("[\"https://example.com/ä\"]");
    t.tool_calls = fx_text("[{\"id\":\"call_ä\"}]");
    t.user_content = fx_text("What's “up”?\n\x7f");
    t.assistant_content = fx_text("");
    t.generation = 2;
    t.created_us += 123456;
    fx_store_turn(st, &t);
    ask_turn("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_OK);
    ck_assert(id_equal(&a.turn.id, &t.id) && id_equal(&a.turn.thread_id, &t.thread_id));
    ck_assert(id_equal(&a.turn.user_message_id, &t.user_message_id));
    ck_assert(id_equal(&a.turn.assistant_message_id, &t.assistant_message_id));
    ck_assert_str_eq(a.question, t.user_content.s);
    ck_assert_str_eq(a.answer, "");
    ck_assert_str_eq(a.citations, t.citations.s);
    ck_assert_str_eq(a.tool_calls, t.tool_calls.s);
    ck_assert_str_eq(a.finish, "stop");
    ck_assert_str_eq(a.error, "(null)");
    ck_assert(a.turn.ttft_ms == 10.5 && a.turn.latency_ms == 20.25);
    ck_assert(a.turn.queue_wait_ms == 0 && a.turn.prompt_tokens == 3);
    ck_assert_int_eq(a.turn.generation, 2);
    ck_assert_int_eq(a.turn.created_us, t.created_us);
    ck_assert_int_eq(a.turn.finished_us, t.finished_us);
    ck_assert_mem_eq(a.turn.key_digest, t.key_digest, sizeof(t.key_digest));

    ask_turn("other", 1, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
    fx_exec("UPDATE threads SET deleted_at = created_at");
    ask_turn("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_E_NOT_FOUND);
}
END_TEST

START_TEST(a_stateless_turn_without_answer_has_its_nulls)
{
    static struct fx_answer a;
    struct store_turn t = fx_turn(1, 0);

    t.status = "failed";
    t.finish_reason = NULL;
    t.error_code = "upstream_500";
    t.assistant_content.s = NULL;
    t.ttft_ms = -1;
    t.prompt_tokens = t.completion_tokens = -1;
    fx_store_turn(st, &t);
    ask_turn("acme", 1, &a);
    ck_assert_int_eq(a.e, DAC_OK);
    ck_assert(id_is_zero(&a.turn.thread_id) && id_is_zero(&a.turn.assistant_message_id));
    ck_assert_str_eq(a.answer, "(null)");
    ck_assert_str_eq(a.finish, "(null)");
    ck_assert_str_eq(a.error, "upstream_500");
    ck_assert(a.turn.ttft_ms < 0 && a.turn.prompt_tokens == -1);
    ck_assert_int_eq(a.turn.completion_tokens, -1);
}
END_TEST

/* --- callbacks ---------------------------------------------------------------------- */

static int order[8], order_n;
static struct store_query *victim;
static bool close_inside;

static void note_order(void *arg, enum dac_err e, const struct store_thread *t)
{
    (void)e;
    (void)t;
    order[order_n++] = *(int *)arg;
    if (victim != NULL)
        store_query_cancel(victim);
    victim = NULL;
    if (close_inside) {
        store_reader_close(reader);
        reader = NULL;
    }
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

START_TEST(callbacks_keep_the_order_and_skip_the_cancelled)
{
    static int names[] = {0, 1, 2, 3, 4};
    struct store_query *q[5];
    struct id id = fx_id('h', 1);

    fx_store_thread(st, 1);
    for (int i = 0; i < 5; i++)
        q[i] = store_read_thread(reader, "acme", &id, note_order, &names[i]);
    ck_assert_int_eq(order_n, 0);
    store_query_cancel(q[1]);
    victim = q[4]; /* cancelled by the callback of 0 */
    run_until_called(3);
    ck_assert(order[0] == 0 && order[1] == 2 && order[2] == 3);
}
END_TEST

static void ask_again(void *arg, enum dac_err e, const struct store_thread *t)
{
    struct id id = fx_id('h', 1);

    (void)e;
    (void)t;
    if (++*(int *)arg < 100)
        ck_assert_ptr_nonnull(store_read_thread(reader, "acme", &id, ask_again, arg));
}

START_TEST(a_chain_of_queries_does_not_keep_the_loop)
{
    int calls = 0;
    struct id id = fx_id('h', 1);

    ck_assert_ptr_nonnull(store_read_thread(reader, "acme", &id, ask_again, &calls));
    for (int turns = 1; calls < 100; turns++) {
        ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE), 0);
        ck_assert_int_le(calls, turns);
    }
}
END_TEST

START_TEST(a_reader_may_be_closed_by_a_callback_or_with_queries_left)
{
    static int name = 7;
    struct id id = fx_id('h', 1);

    for (int i = 0; i < 3; i++)
        ck_assert_ptr_nonnull(store_read_thread(reader, "acme", &id, note_order, &name));
    close_inside = true;
    run_until_called(1);
    ck_assert_ptr_null(reader);
    close_inside = false;
    reader = fx_reader(base);
    ck_assert_ptr_nonnull(store_read_thread(reader, "acme", &id, note_order, &name));
    store_reader_close(reader);
    reader = fx_reader(base);
    run_until_called(1);
}
END_TEST

/* --- large and odd ------------------------------------------------------------------ */

START_TEST(a_thread_of_ten_thousand_messages_is_paged_through)
{
    enum { TURNS = 5000, BATCH = 250 };
    static struct store_row rows[BATCH];
    static struct fx_answer a;
    unsigned seen = 0;
    struct id after;

    fx_store_thread(st, 1);
    for (unsigned n = 0; n < TURNS; n++) {
        struct store_turn t = fx_turn(n + 1, 1);

        rows[n % BATCH] = fx_turn_row(&t);
        if (n % BATCH == BATCH - 1)
            ck_assert_int_eq(fx_write(st, rows, BATCH), DAC_OK);
    }
    uint64_t t0 = clock_now_ns();

    do {
        ask_messages("acme", 1, seen > 0 ? &after : NULL, 200, &a);
        ck_assert_int_eq(a.e, DAC_OK);
        ck_assert_uint_eq(a.n, 200);
        for (size_t i = 0; i < a.n; i++, seen++)
            ck_assert(is(&a.ids[i], seen % 2 == 0 ? 'u' : 'a', seen / 2 + 1));
        after = a.ids[a.n - 1];
    } while (a.more);
    ck_assert_uint_eq(seen, 2 * TURNS);
    /* The last page is as quick as the first: no page reads what is in front of it. */
    ck_assert_uint_lt(clock_now_ns() - t0, 10 * NS_PER_S);
    struct id until = fx_id('t', TURNS);

    ask_history(1, &until, 40, 1000, &a);
    ck_assert(a.n == 40 && a.more && is(&a.ids[39], 'a', TURNS));
    ask_history(1, &until, SIZE_MAX, 1399, &a);
    ck_assert(a.n == 198 && a.more && is(&a.ids[0], 'u', TURNS - 98));
}
END_TEST

/* 1,000 turns without an answer stand between the newest and the rest. */
START_TEST(a_history_looks_back_a_thousand_turns)
{
    enum { SILENT = 1000 };
    static struct store_row rows[SILENT];
    static struct fx_answer a;
    struct store_turn t = fx_turn(1, 1);
    struct id until;

    fx_store_thread(st, 1);
    fx_store_turn(st, &t);
    for (unsigned n = 0; n < SILENT; n++) {
        t = fx_turn(n + 2, 1);
        t.assistant_content.s = NULL;
        rows[n] = fx_turn_row(&t);
    }
    ck_assert_int_eq(fx_write(st, rows, SILENT), DAC_OK);
    until = fx_id('t', SILENT); /* 999 silent ones and the first */
    ask_history(1, &until, 10, 1000, &a);
    ck_assert(a.e == DAC_OK && a.n == 2 && !a.more && is(&a.ids[0], 'u', 1));
    until = fx_id('t', SILENT + 1);
    ask_history(1, &until, 10, 1000, &a);
    ck_assert(a.e == DAC_OK && a.n == 0 && a.more);
}
END_TEST

static char *huge;
static size_t huge_n;

static void on_huge(void *arg, enum dac_err e, const struct store_message *m, size_t n,
                    bool more)
{
    ck_assert(e == DAC_OK && n == 2 && !more);
    ck_assert_uint_eq(m[1].content.n, huge_n);
    ck_assert(memcmp(m[1].content.s, huge, huge_n) == 0 &&
              m[1].content.s[huge_n] == '\0');
    *(bool *)arg = true;
}

START_TEST(an_answer_of_four_mebibytes_comes_back_whole)
{
    static const char words[] = "αβγ 漢字 👍🏽 \"{}[]\\ \r\n";
    static const struct id none;
    bool done = false;
    struct id id = fx_id('h', 1);
    struct store_turn t = fx_turn(1, 1);

    huge_n = 4u << 20;
    huge = malloc(huge_n + sizeof(words));
    for (size_t i = 0; i < huge_n; i += sizeof(words) - 1)
        memcpy(huge + i, words, sizeof(words) - 1);
    while ((huge[huge_n] & 0xc0) == 0x80) /* not in the middle of a character */
        huge_n--;
    t.assistant_content = (struct store_text){huge, huge_n};
    fx_store_thread(st, 1);
    fx_store_turn(st, &t);
    ck_assert_ptr_nonnull(
        store_read_messages(reader, "acme", &id, &none, 10, on_huge, &done));
    while (!done)
        linger(5);
    free(huge);
}
END_TEST

static const char *expected_text;

static void on_odd(void *arg, enum dac_err e, const struct store_turn *t)
{
    ck_assert_int_eq(e, DAC_OK);
    ck_assert_str_eq(t->user_content.s, expected_text);
    ck_assert_uint_eq(t->user_content.n, strlen(expected_text));
    ck_assert_str_eq(t->assistant_content.s, expected_text);
    ck_assert_str_eq(t->model, expected_text);
    *(bool *)arg = true;
}

static void on_odd_title(void *arg, enum dac_err e, const struct store_thread *t)
{
    ck_assert_int_eq(e, DAC_OK);
    ck_assert_str_eq(t->org, expected_text);
    ck_assert_str_eq(t->title.s, expected_text);
    *(bool *)arg = true;
}

START_TEST(odd_text_comes_back_as_it_was)
{
    static const char *const texts[] = {
        "\x01\x02\x1b[31m\x7f\t\r\n", /* controls */
        "e\xcc\x81 and \xc3\xa9",     /* the same letter, composed and not */
        "\xef\xbb\xbf"
        "BOM",                                  /* byte order mark */
        "\xef\xbf\xbd\xef\xbf\xbe\xef\xbf\xbf", /* U+FFFD, noncharacters */
        "\xf4\x8f\xbf\xbf",                     /* U+10FFFF */
        "\xee\x80\x80\xf3\xb0\x80\x80",         /* private use */
        "\xe2\x80\xae"
        "desrever\xe2\x80\xac",                         /* right to left override */
        "\xe2\x80\x8b\xe2\x80\x8d\xe2\x81\xa0\xc2\xad", /* nothing to be seen */
        "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7", /* a
                                                                                 family */
        "\xc2\x80\xc2\x85\xe2\x80\xa8\xe2\x80\xa9", /* C1, line separators */
        "' \" \\ \\x41 \\u0000 $1 %s {} -- /* ; ]",
        "\xed\x9f\xbf\xee\x80\x80", /* around the surrogates */
        " ",
    };

    for (unsigned n = 1; n <= DAC_ARRAY_LEN(texts); n++) {
        struct store_thread h = fx_thread(n);
        struct store_turn t = fx_turn(n, n);
        bool done = false, done_title = false;

        expected_text = texts[n - 1];
        h.org = t.org = t.model = t.provider = t.finish_reason = expected_text;
        h.title = t.user_content = t.assistant_content = fx_text(expected_text);
        ck_assert_int_eq(fx_write_one(st, fx_thread_row(&h)), DAC_OK);
        ck_assert_int_eq(fx_write_one(st, fx_turn_row(&t)), DAC_OK);
        ck_assert_ptr_nonnull(
            store_read_turn(reader, expected_text, &t.id, on_odd, &done));
        ck_assert_ptr_nonnull(
            store_read_thread(reader, expected_text, &h.id, on_odd_title, &done_title));
        while (!done || !done_title)
            linger(1);
    }
}
END_TEST

static void add_tests(TCase *tc)
{
    tcase_add_test(tc, a_thread_is_found_by_its_org_alone);
    tcase_add_test(tc, threads_are_paged_newest_first);
    tcase_add_test(tc, a_page_is_bounded_whatever_is_asked);
    tcase_add_test(tc, messages_are_paged_in_the_order_of_their_turns);
    tcase_add_test(tc, a_page_of_huge_messages_ends_early);
    tcase_add_test(tc, history_keeps_the_newest_whole_turns);
    tcase_add_test(tc, history_needs_its_thread_and_turn);
    tcase_add_test(tc, turns_of_one_moment_have_one_order);
    tcase_add_test(tc, a_turn_comes_back_as_it_was_stored);
    tcase_add_test(tc, a_stateless_turn_without_answer_has_its_nulls);
    tcase_add_test(tc, callbacks_keep_the_order_and_skip_the_cancelled);
    tcase_add_test(tc, a_chain_of_queries_does_not_keep_the_loop);
    tcase_add_test(tc, a_reader_may_be_closed_by_a_callback_or_with_queries_left);
    tcase_add_test(tc, a_thread_of_ten_thousand_messages_is_paged_through);
    tcase_add_test(tc, a_history_looks_back_a_thousand_turns);
    tcase_add_test(tc, an_answer_of_four_mebibytes_comes_back_whole);
    tcase_add_test(tc, odd_text_comes_back_as_it_was);
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
    Suite *s = suite_create("store_reader");

    add_tests(case_new(s, "sqlite", setup));
    if (px_init())
        add_tests(case_new(s, "postgres", setup_postgres));
    SRunner *sr = srunner_create(s);

    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);

    srunner_free(sr);
    px_exit();
    return failed == 0 ? 0 : 1;
}
