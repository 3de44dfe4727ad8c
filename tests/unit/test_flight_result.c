/*
 * A flight's log read into one struct: text over block borders, RESET, tool calls merged
 * from pieces (also from pieces that no sane provider sends), and broken logs.
 */
#include "flight/result.h"
#include "tests/shm/segment_fixture.h"

static struct join_result lead;
static struct turn_result result;

static void setup(void)
{
    struct join_request req = question(1);

    fixture_open(64);
    shm.self = new_worker();
    ck_assert_int_eq(index_join(&shm, &req, &lead), DAC_OK);
}

static void teardown(void)
{
    turn_result_free(&result);
    fixture_close();
}

static void append(enum record_type type, const void *p, size_t n)
{
    ck_assert_int_eq(blocklog_append(&shm, &lead.writer, type, p, (uint32_t)n), DAC_OK);
}

static void append_text(enum record_type type, const char *s)
{
    append(type, s, strlen(s));
}

static void expect_buf(const struct buf *b, const char *want)
{
    ck_assert_uint_eq(b->len, strlen(want));
    ck_assert_int_eq(memcmp(b->len ? b->data : "", want, b->len), 0);
}

#define REQUEST "{\"org\":\"o\",\"provider\":\"p\",\"model\":\"m\",\"content\":\"hello\"}"

START_TEST(empty_log_is_an_empty_result)
{
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert(!result.has_request && !result.has_thread && !result.ended);
    expect_buf(&result.text, "");
    ck_assert_int_eq(result.usage.total_tokens, -1);
}
END_TEST

START_TEST(whole_turn)
{
    struct record_usage usage = {3, 4, 7};

    append_text(RECORD_REQUEST, REQUEST);
    append_text(RECORD_REASONING, "hm, ");
    append_text(RECORD_DELTA, "one ");
    append_text(RECORD_DELTA, "");
    append_text(RECORD_REASONING, "well");
    append_text(RECORD_CITATIONS, "[\"a\"]");
    append_text(RECORD_DELTA, "two");
    append_text(RECORD_CITATIONS, "[\"b\"]");
    append(RECORD_USAGE, &usage, sizeof(usage));
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert(!result.ended);
    turn_result_free(&result);
    end_flight(&lead.ref, &lead.writer, FLIGHT_FAILED, 5);
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert(result.has_request && result.ended);
    ck_assert_str_eq(result.request.model, "m");
    expect_buf(&result.request.content, "hello");
    expect_buf(&result.text, "one two");
    expect_buf(&result.reasoning, "hm, well");
    expect_buf(&result.citations, "[\"b\"]");
    expect_buf(&result.tools, "");
    ck_assert_int_eq(result.usage.total_tokens, 7);
    ck_assert_uint_eq(result.end.status, TURN_FAILED);
}
END_TEST

/* Long and short pieces, so that headers and texts are cut at borders. */
START_TEST(text_over_many_blocks)
{
    static char all[200000], want[200000];
    size_t len = 0;

    for (size_t i = 0; i < sizeof(all); i++)
        all[i] = (char)('a' + i % 23);
    for (size_t i = 0; len + 5000 < sizeof(all); i++) {
        size_t n = i * i % 4999;
        append(RECORD_DELTA, all + len, n);
        memcpy(want + len, all + len, n);
        len += n;
    }
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert_uint_eq(result.text.len, len);
    ck_assert_int_eq(memcmp(result.text.data, want, len), 0);
}
END_TEST

/* An empty record whose header is cut by a border has no byte to point to. */
START_TEST(empty_record_over_a_border)
{
    static const char fill[SHM_BLOCK_SIZE];

    append(RECORD_DELTA, fill,
           SHM_BLOCK_SIZE - sizeof(struct record_header) - (size_t)_i);
    append(RECORD_DELTA, "", 0);
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert_uint_eq(result.text.len,
                      SHM_BLOCK_SIZE - sizeof(struct record_header) - (size_t)_i);
}
END_TEST

/* A new generation starts from nothing. */
START_TEST(reset_forgets_the_answer)
{
    struct record_usage usage = {3, 4, 7};
    struct record_reset reset = {.reason = "fetcher_died"};

    append_text(RECORD_REQUEST, REQUEST);
    append_text(RECORD_REASONING, "hm");
    append_text(RECORD_DELTA, "one");
    append_text(RECORD_CITATIONS, "[1]");
    append_text(RECORD_TOOL, "[{\"index\":0,\"id\":\"a\"}]");
    append(RECORD_USAGE, &usage, sizeof(usage));
    lead.writer.generation = 1;
    append(RECORD_RESET, &reset, sizeof(reset));
    append_text(RECORD_DELTA, "two");
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert_uint_eq(result.generation, 1);
    expect_buf(&result.text, "two");
    expect_buf(&result.reasoning, "");
    expect_buf(&result.citations, "");
    expect_buf(&result.tools, "");
    ck_assert_int_eq(result.usage.prompt_tokens, -1);
    ck_assert_int_eq(result.usage.total_tokens, -1);
    ck_assert(result.has_request);
}
END_TEST

/* --- tool calls --------------------------------------------------------------------- */

static const struct {
    const char *pieces[4];
    const char *want;
} tools[] = {
    {{"[{\"index\":0,\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\","
      "\"arguments\":\"\"}}]",
      "[{\"index\":0,\"function\":{\"arguments\":\"{\\\"a\\\"\"}}]",
      "[{\"index\":0,\"function\":{\"arguments\":\":1}\"}}]"},
     "[{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":"
     "\"{\\\"a\\\":1}\"}}]"},
    {{"[{\"index\":1,\"id\":\"b\"},{\"index\":0,\"id\":\"a\"}]"},
     "[{\"id\":\"a\"},{\"id\":\"b\"}]"},
    {{"[{\"id\":\"a\"}]"}, "[{\"id\":\"a\"}]"}, /* no index: the first */
    {{"[{\"index\":0,\"id\":\"a\"}]", "[{\"index\":0,\"id\":\"b\"}]"},
     "[{\"id\":\"b\"}]"},
    {{"[{\"index\":0,\"id\":null,\"function\":null}]"}, "[{}]"},
    {{"[]"}, "[]"},
    {{"{}"}, "[]"},
    /* Out of bounds: left out. */
    {{"[{\"index\":-1,\"id\":\"a\"}]"}, "[]"},
    {{"[{\"index\":128,\"id\":\"a\"}]"}, "[]"},
    {{"[{\"index\":1e300,\"id\":\"a\"}]"}, "[]"},
    /* Elements and members of a wrong kind: left out, and no crash. */
    {{"[null]"}, "[]"},
    {{"[5,\"x\",[],true]"}, "[]"},
    {{"[{\"index\":0,\"function\":\"f\"}]"}, "[{}]"},
    {{"[{\"index\":0,\"function\":[1]}]"}, "[{}]"},
    {{"[{\"index\":0,\"function\":5}]", "[{\"index\":0,\"function\":{\"name\":\"f\"}}]"},
     "[{\"function\":{\"name\":\"f\"}}]"},
    {{"[{\"index\":0,\"function\":{\"name\":5,\"arguments\":\"x\"}}]"},
     "[{\"function\":{\"arguments\":\"x\"}}]"},
};

START_TEST(tool_calls_are_merged)
{
    struct json_object *got, *want;
    struct json_error why;

    for (size_t i = 0; i < DAC_ARRAY_LEN(tools[_i].pieces) && tools[_i].pieces[i]; i++)
        append_text(RECORD_TOOL, tools[_i].pieces[i]);
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert_int_eq(json_parse_strict(result.tools.data, result.tools.len, &got, &why),
                     DAC_OK);
    ck_assert_int_eq(
        json_parse_strict(tools[_i].want, strlen(tools[_i].want), &want, &why), DAC_OK);
    ck_assert_msg(json_object_equal(got, want), "%.*s", (int)result.tools.len,
                  result.tools.data);
    json_object_put(got);
    json_object_put(want);
}
END_TEST

/* --- broken logs -------------------------------------------------------------------- */

static const struct {
    enum record_type type;
    const char *payload;
    int times;
} broken[] = {
    {RECORD_REQUEST, REQUEST, 2}, {RECORD_REQUEST, "{}", 1}, {RECORD_REQUEST, "", 1},
    {RECORD_THREAD, "{}", 1},     {RECORD_TOOL, "[", 1},     {RECORD_TOOL, "", 1},
    {RECORD_USAGE, "short", 1},   {RECORD_END, "short", 1},
};

START_TEST(broken_log_is_corrupt)
{
    for (int i = 0; i < broken[_i].times; i++)
        append_text(broken[_i].type, broken[_i].payload);
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_E_CORRUPT);
}
END_TEST

/* Texts of END come from another process: they need not have an end. */
START_TEST(texts_of_end_are_ended)
{
    struct record_end end;

    memset(&end, 'x', sizeof(end));
    append(RECORD_END, &end, sizeof(end));
    ck_assert_int_eq(turn_result_read(&shm, lead.ref, &result), DAC_OK);
    ck_assert_uint_eq(strlen(result.end.finish_reason), sizeof(end.finish_reason) - 1);
    ck_assert_uint_eq(strlen(result.end.code), sizeof(end.code) - 1);
    ck_assert_uint_eq(strlen(result.end.message), sizeof(end.message) - 1);
}
END_TEST

/* --- timing ------------------------------------------------------------------------- */

static const struct {
    uint64_t arrived, queued, fetch, first, ended; /* milliseconds */
    double ttft, latency, wait;
} timings[] = {
    {100, 110, 130, 150, 200, 50, 100, 20},
    {100, 110, 110, 0, 200, -1, 100, 0},
    {100, 0, 0, 0, 0, -1, -1, -1},
    {100, 110, 0, 0, 120, -1, 20, -1},
    {0, 0, 0, 5, 5, -1, -1, -1},
};

START_TEST(timing_in_milliseconds)
{
    struct shm_flight *f = flight_at(&shm, lead.ref.index);
    struct turn_timing t;

    atomic_store(&f->arrived_ns, timings[_i].arrived * NS_PER_MS);
    atomic_store(&f->queued_ns, timings[_i].queued * NS_PER_MS);
    atomic_store(&f->fetch_ns, timings[_i].fetch * NS_PER_MS);
    atomic_store(&f->first_token_ns, timings[_i].first * NS_PER_MS);
    atomic_store(&f->ended_ns, timings[_i].ended * NS_PER_MS);
    t = turn_timing(&shm, lead.ref.index);
    ck_assert_double_eq(t.ttft_ms, timings[_i].ttft);
    ck_assert_double_eq(t.latency_ms, timings[_i].latency);
    ck_assert_double_eq(t.queue_wait_ms, timings[_i].wait);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("flight's result");
    TCase *t = tcase_create("result");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, empty_log_is_an_empty_result);
    tcase_add_test(t, whole_turn);
    tcase_add_test(t, text_over_many_blocks);
    tcase_add_loop_test(t, empty_record_over_a_border, 0, 12);
    tcase_add_test(t, reset_forgets_the_answer);
    tcase_add_loop_test(t, tool_calls_are_merged, 0, DAC_ARRAY_LEN(tools));
    tcase_add_loop_test(t, broken_log_is_corrupt, 0, DAC_ARRAY_LEN(broken));
    tcase_add_test(t, texts_of_end_are_ended);
    tcase_add_loop_test(t, timing_in_milliseconds, 0, DAC_ARRAY_LEN(timings));
    suite_add_tcase(s, t);
    return run_suite(s);
}
