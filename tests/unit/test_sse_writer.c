/*
 * The writer of server-sent events: exact bytes, and that nothing inside data can end an
 * event.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "http/sse.h"

static const struct {
    const char *event;
    const char *id;
    const char *data;
    const char *bytes;
} events[] = {
    {"delta", "0-5", "{\"text\":\"x\"}",
     "event: delta\nid: 0-5\ndata: {\"text\":\"x\"}\n\n"},
    {"ping", NULL, "{}", "event: ping\ndata: {}\n\n"},
    {NULL, "1", "x", "id: 1\ndata: x\n\n"},
    {NULL, NULL, "[DONE]", "data: [DONE]\n\n"},
    {NULL, NULL, "", "data: \n\n"},
    {NULL, NULL, "a\nb", "data: a\ndata: b\n\n"},
    {NULL, NULL, "a\r\nb\rc\n\nd", "data: a\ndata: b\ndata: c\ndata: \ndata: d\n\n"},
    {NULL, NULL, "a\n", "data: a\ndata: \n\n"},
};

START_TEST(writes_events)
{
    struct buf b = BUF_INIT(1024);

    sse_put_event(&b, events[_i].event, events[_i].id, events[_i].data,
                  strlen(events[_i].data));
    ck_assert_str_eq(buf_cstr(&b), events[_i].bytes);
    buf_free(&b);
}
END_TEST

START_TEST(writes_in_parts)
{
    struct buf b = BUF_INIT(1024);

    sse_put_begin(&b, "done", "0-9");
    buf_puts(&b, "{}");
    sse_put_end(&b);
    ck_assert_str_eq(buf_cstr(&b), "event: done\nid: 0-9\ndata: {}\n\n");
    buf_free(&b);
}
END_TEST

START_TEST(writes_comments)
{
    struct buf b = BUF_INIT(1024);

    sse_put_comment(&b, "ping");
    sse_put_comment(&b, "a\ndata: b");
    ck_assert_str_eq(buf_cstr(&b), ": ping\n\n: a\n: data: b\n\n");
    buf_free(&b);
}
END_TEST

START_TEST(a_full_buffer_is_noticed)
{
    struct buf b = BUF_INIT(10);

    sse_put_event(&b, "delta", "0-5", "{}", 2);
    ck_assert(b.failed);
    ck_assert_uint_le(b.len, 10);
    buf_free(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sse_writer");
    TCase *tc = tcase_create("all");

    tcase_add_loop_test(tc, writes_events, 0, (int)DAC_ARRAY_LEN(events));
    tcase_add_test(tc, writes_in_parts);
    tcase_add_test(tc, writes_comments);
    tcase_add_test(tc, a_full_buffer_is_noticed);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
