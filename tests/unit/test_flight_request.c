/*
 * REQUEST and THREAD records: there and back, and what is no such record.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "flight/request.h"

static struct json_object *json(const char *text)
{
    struct json_object *o;
    struct json_error why;

    ck_assert_int_eq(json_parse_strict(text, strlen(text), &o, &why), DAC_OK);
    return o;
}

static bool buf_is(const struct buf *b, const char *s, size_t n)
{
    return b->len == n && (n == 0 || memcmp(b->data, s, n) == 0);
}

/* --- there and back ----------------------------------------------------------------- */

static const struct {
    const char *content, *system, *messages, *params;
    bool thread, last;
} turns[] = {
    {"", NULL, NULL, NULL, false, false},
    {"hello", NULL, NULL, NULL, true, false},
    {"hello", "be brief", NULL, "{\"temperature\":0.5}", true, true},
    {"", NULL, "[{\"role\":\"user\",\"content\":\"x\"}]", "{}", false, false},
    {"quote \" back \\ line\nfeed tab\t bell\a del\x7f", "\x01", NULL, NULL, true, true},
    {"h\xc3\xa4\xc3\xb6 \xe2\x82\xac \xf0\x9f\x98\x80 \xe2\x80\xa8", NULL, NULL, NULL,
     true, true},
    {"x", NULL, "[]", "{\"stop\":[\"\\n\",\"\\\"\"],\"n\":null,\"big\":1e300}", false,
     false},
};

START_TEST(turn_survives)
{
    struct turn_request in, out;
    struct buf b = BUF_INIT(1 << 20);
    size_t system_len = turns[_i].system ? strlen(turns[_i].system) : 0;

    turn_request_init(&in);
    memset(in.org, 'o', ORG_MAX);
    memset(in.model, 'm', MODEL_MAX);
    memset(in.provider, 'p', PROVIDER_MAX);
    in.user_message_id = id_new();
    in.assistant_message_id = id_new();
    if (turns[_i].thread)
        in.thread_id = id_new();
    if (turns[_i].last)
        in.last_turn_id = id_new();
    buf_puts(&in.content, turns[_i].content);
    if (turns[_i].system)
        buf_puts(&in.system, turns[_i].system);
    if (turns[_i].messages)
        in.messages = json(turns[_i].messages);
    if (turns[_i].params)
        in.params = json(turns[_i].params);
    ck_assert_int_eq(turn_request_write(&in, &b), DAC_OK);
    ck_assert_ptr_null(memchr(b.data, '\n', b.len));
    ck_assert_int_eq(turn_request_parse(b.data, b.len, &out), DAC_OK);
    ck_assert_str_eq(out.org, in.org);
    ck_assert_str_eq(out.provider, in.provider);
    ck_assert_str_eq(out.model, in.model);
    ck_assert(id_equal(&out.user_message_id, &in.user_message_id));
    ck_assert(id_equal(&out.assistant_message_id, &in.assistant_message_id));
    ck_assert(id_equal(&out.thread_id, &in.thread_id));
    ck_assert(id_equal(&out.last_turn_id, &in.last_turn_id));
    ck_assert(buf_is(&out.content, turns[_i].content, strlen(turns[_i].content)));
    ck_assert(buf_is(&out.system, turns[_i].system, system_len));
    ck_assert(json_object_equal(out.messages, in.messages));
    ck_assert(json_object_equal(out.params, in.params));
    ck_assert_int_eq(out.params != NULL, turns[_i].params != NULL);
    turn_request_free(&in);
    turn_request_free(&out);
    buf_free(&b);
}
END_TEST

START_TEST(write_stops_at_the_buffers_bound)
{
    struct turn_request in;
    struct buf b = BUF_INIT(40);

    turn_request_init(&in);
    strcpy(in.org, "o");
    buf_puts(&in.content, "a text that is too long for the forty bytes there are");
    ck_assert_int_ne(turn_request_write(&in, &b), DAC_OK);
    turn_request_free(&in);
    buf_free(&b);
}
END_TEST

static const char *const titles[] = {NULL, "", "Burst", "\"\\\n\xc3\xa4"};

START_TEST(thread_survives)
{
    struct thread_request in = {.org = "org", .created_us = 1735689600123456}, out;
    struct buf b = BUF_INIT(4096);

    in.thread_id = id_new();
    in.title.max = 4096;
    if (titles[_i])
        ck_assert_int_eq(buf_puts(&in.title, titles[_i]), DAC_OK);
    ck_assert_int_eq(thread_request_write(&in, &b), DAC_OK);
    ck_assert_int_eq(thread_request_parse(b.data, b.len, &out), DAC_OK);
    ck_assert_str_eq(out.org, in.org);
    ck_assert(id_equal(&out.thread_id, &in.thread_id));
    ck_assert_int_eq(out.created_us, in.created_us);
    ck_assert(buf_is(&out.title, titles[_i], titles[_i] ? strlen(titles[_i]) : 0));
    thread_request_free(&in);
    thread_request_free(&out);
    buf_free(&b);
}
END_TEST

/* --- what is no such record --------------------------------------------------------- */

#define ID     "01890a5d-ac96-774b-bcce-b302099a8057"
#define LONG31 "1234567890123456789012345678901"

static const struct {
    const char *text;
    enum dac_err turn, thread;
} texts[] = {
    {"", DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"{", DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"[]", DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"null", DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"{}", DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"{\"org\":\"o\"}", DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"provider\":\"p\",\"model\":\"m\"}", DAC_OK, DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"provider\":\"" LONG31 "\",\"model\":\"m\"}", DAC_OK,
     DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"provider\":\"" LONG31 "x\",\"model\":\"m\"}", DAC_E_CORRUPT,
     DAC_E_CORRUPT},
    {"{\"org\":5,\"provider\":\"p\",\"model\":\"m\"}", DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"provider\":\"p\",\"model\":\"m\",\"content\":5}", DAC_E_CORRUPT,
     DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"provider\":\"p\",\"model\":\"m\",\"system\":[]}", DAC_E_CORRUPT,
     DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"provider\":\"p\",\"model\":\"m\",\"thread_id\":\"x\"}",
     DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"thread_id\":\"" ID "\"}", DAC_E_CORRUPT, DAC_OK},
    {"{\"org\":\"o\",\"thread_id\":\"00000000-0000-0000-0000-000000000000\"}",
     DAC_E_CORRUPT, DAC_E_CORRUPT},
    {"{\"org\":\"o\",\"thread_id\":\"" ID "\",\"title\":5}", DAC_E_CORRUPT,
     DAC_E_CORRUPT},
};

START_TEST(malformed_records_are_corrupt)
{
    struct turn_request turn;
    struct thread_request thread;
    size_t n = strlen(texts[_i].text);

    ck_assert_int_eq(turn_request_parse(texts[_i].text, n, &turn), texts[_i].turn);
    turn_request_free(&turn);
    ck_assert_int_eq(thread_request_parse(texts[_i].text, n, &thread), texts[_i].thread);
    thread_request_free(&thread);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("request records");
    TCase *t = tcase_create("records");
    SRunner *r;
    int failed;

    tcase_add_loop_test(t, turn_survives, 0, DAC_ARRAY_LEN(turns));
    tcase_add_test(t, write_stops_at_the_buffers_bound);
    tcase_add_loop_test(t, thread_survives, 0, DAC_ARRAY_LEN(titles));
    tcase_add_loop_test(t, malformed_records_are_corrupt, 0, DAC_ARRAY_LEN(texts));
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
