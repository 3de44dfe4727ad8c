/*
 * The key: what makes two requests the same question, and what does not.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "flight/key.h"

/* A request in short; NULL members are absent. */
struct asked {
    const char *org, *thread, *provider, *model, *parent, *system, *content, *messages,
        *params;
};

#define THREAD_1 "01890a5d-ac96-774b-bcce-b302099a8057"
#define THREAD_2 "01890a5d-ac96-774b-bcce-b302099a8058"

static const struct asked base = {.org = "o",
                                  .thread = THREAD_1,
                                  .provider = "p",
                                  .model = "m",
                                  .content = "hello",
                                  .params = "{\"a\":1,\"b\":[1,{\"x\":1,\"y\":2}]}"};

static struct json_object *json(const char *text)
{
    struct json_object *o;
    struct json_error why;

    if (!text)
        return NULL;
    ck_assert_msg(json_parse_strict(text, strlen(text), &o, &why) == DAC_OK, "%s: %s",
                  text, why.message);
    return o;
}

static void find_digest(void)
{
    ck_assert_int_eq(key_init(), DAC_OK);
}

static uint64_t question; /* of the last key_of() */

static void key_of(const struct asked *a, uint8_t key[SHM_KEY_SIZE])
{
    struct turn_request r;

    turn_request_init(&r);
    strcpy(r.org, a->org);
    strcpy(r.provider, a->provider);
    strcpy(r.model, a->model);
    if (a->thread)
        ck_assert(id_parse(a->thread, strlen(a->thread), &r.thread_id));
    if (a->system)
        buf_puts(&r.system, a->system);
    if (a->content)
        buf_puts(&r.content, a->content);
    r.messages = json(a->messages);
    r.params = json(a->params);
    /* These belong to one asking, not to the question. */
    r.user_message_id = id_new();
    r.assistant_message_id = id_new();
    r.last_turn_id = id_new();
    ck_assert_int_eq(key_of_request(&r, a->parent, key), DAC_OK);
    ck_assert_int_eq(key_of_question(&r, &question), DAC_OK);
    turn_request_free(&r);
}

/* --- what differs ------------------------------------------------------------------- */

#define WITH(...)                                                                        \
    {                                                                                    \
        .org = "o", .thread = THREAD_1, .provider = "p", .model = "m",                   \
        .content = "hello", .params = "{\"a\":1,\"b\":[1,{\"x\":1,\"y\":2}]}",           \
        __VA_ARGS__                                                                      \
    }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
static const struct asked different[] = {
    WITH(.org = "o2"),
    WITH(.org = ""),
    WITH(.org = "op", .provider = ""), /* moved over a border */
    WITH(.thread = THREAD_2),
    WITH(.thread = NULL),
    WITH(.provider = "p2"),
    WITH(.model = "m2"),
    WITH(.model = "", .provider = "pm"),
    WITH(.parent = THREAD_2),
    WITH(.system = "be brief"),
    WITH(.system = "hello", .content = ""),
    WITH(.content = "Hello"),
    WITH(.content = "hello "),
    WITH(.content = ""),
    WITH(.params = NULL),
    WITH(.params = "{}"),
    WITH(.params = "{\"a\":2,\"b\":[1,{\"x\":1,\"y\":2}]}"),
    WITH(.params = "{\"a\":\"1\",\"b\":[1,{\"x\":1,\"y\":2}]}"),
    WITH(.params = "{\"a\":1,\"b\":[{\"x\":1,\"y\":2},1]}"),
    WITH(.params = "{\"a\":1,\"b\":[1,{\"x\":2,\"y\":1}]}"),
    WITH(.params = "{\"a\":1,\"b\":[1,{\"x\":1,\"y\":2}],\"c\":null}"),
    WITH(.params = "{\"a\":1,\"b\":[1,{\"x\":1,\"y\":null}]}"),
    WITH(.messages = "[]"),
    WITH(.messages = "[{\"role\":\"user\",\"content\":\"hello\"}]"),
    WITH(.messages = "[{\"role\":\"system\",\"content\":\"hello\"}]"),
    WITH(.messages = "[null]"),
    WITH(.messages = "[\"\"]"),
};

/* As key_of_question() has it. */
static const struct asked same_question[] = {WITH(.model = "n"), WITH(.provider = "q"),
                                             WITH(.parent = "x"), WITH(.system = "s"),
                                             WITH(.params = "{\"a\":2}")};

static const struct asked other_question[] = {
    WITH(.org = "p"), WITH(.thread = THREAD_2), WITH(.thread = NULL),
    WITH(.content = "hello "), WITH(.messages = "[\"hello\"]")};
#pragma GCC diagnostic pop

START_TEST(every_difference_that_counts_makes_another_key)
{
    uint8_t keys[DAC_ARRAY_LEN(different) + 1][SHM_KEY_SIZE];

    key_of(&base, keys[0]);
    for (size_t i = 0; i < DAC_ARRAY_LEN(different); i++) {
        key_of(&different[i], keys[i + 1]);
        for (size_t k = 0; k <= i; k++)
            ck_assert_msg(memcmp(keys[i + 1], keys[k], SHM_KEY_SIZE) != 0,
                          "cases %zu and %zd", i, (ssize_t)k - 1);
    }
}
END_TEST

/* --- what does not ------------------------------------------------------------------ */

static const char *const same_params[] = {
    "{\"a\":1,\"b\":[1,{\"x\":1,\"y\":2}]}",
    "{\"b\":[1,{\"x\":1,\"y\":2}],\"a\":1}",
    "{\"b\":[1,{\"y\":2,\"x\":1}],\"a\":1}",
    " { \"a\" : 1 , \"b\" : [ 1 , { \"x\" : 1 , \"\\u0079\" : 2 } ] } ",
};

START_TEST(order_and_spelling_of_members_do_not_count)
{
    struct asked a = base;
    uint8_t key[SHM_KEY_SIZE], other[SHM_KEY_SIZE];

    key_of(&base, key);
    a.params = same_params[_i];
    a.parent = ""; /* none */
    a.system = "";
    key_of(&a, other);
    ck_assert_mem_eq(key, other, SHM_KEY_SIZE);
}
END_TEST

static uint64_t question_of(struct asked a)
{
    uint8_t key[SHM_KEY_SIZE];

    key_of(&a, key);
    ck_assert_uint_ne(question, 0);
    return question;
}

/* For figures of bursts: keys may differ where nobody wanted them to. */
START_TEST(the_question_is_the_same_whatever_comes_with_it)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(same_question); i++)
        ck_assert_uint_eq(question_of(same_question[i]), question_of(base));
    for (size_t i = 0; i < DAC_ARRAY_LEN(other_question); i++)
        ck_assert_uint_ne(question_of(other_question[i]), question_of(base));
}
END_TEST

START_TEST(private_keys_belong_to_one_turn)
{
    struct id turn = id_new(), other = id_new();
    uint8_t key[SHM_KEY_SIZE], again[SHM_KEY_SIZE];

    ck_assert_int_eq(key_private(&turn, key), DAC_OK);
    ck_assert_int_eq(key_private(&turn, again), DAC_OK);
    ck_assert_mem_eq(key, again, SHM_KEY_SIZE);
    ck_assert_int_eq(key_private(&other, again), DAC_OK);
    ck_assert_mem_ne(key, again, SHM_KEY_SIZE);
}
END_TEST

/* A known digest: the stored form must not change by accident. */
START_TEST(org_digest_is_sha256_of_the_name)
{
    static const uint8_t abc[16] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
                                    0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23};
    uint8_t out[16];

    ck_assert_int_eq(key_org("abc", out), DAC_OK);
    ck_assert_mem_eq(out, abc, sizeof(abc));
}
END_TEST

/* So must these: they outlive the program by a day. */
START_TEST(headers_and_bodies_have_digests_that_last)
{
    static const char body_hex[] =
        "03db478060629747979fee740e57ef0a8573ed9e5491e6be342fc23d0710374b";
    static const char abc_hex[] =
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    struct json_object *o = json("{\"b\":[1,{\"y\":2,\"x\":\"\\u00e4\"}],\"a\":0.5}");
    struct id thread;
    uint8_t out[32];
    char hex[65];

    ck_assert(id_parse(THREAD_1, strlen(THREAD_1), &thread));
    ck_assert_int_eq(key_of_header("abc", out), DAC_OK);
    bytes_hex(out, sizeof(out), hex);
    ck_assert_str_eq(hex, abc_hex);
    ck_assert_int_eq(key_of_body(&thread, o, out), DAC_OK);
    bytes_hex(out, sizeof(out), hex);
    ck_assert_str_eq(hex, body_hex);
    json_object_put(o);
}
END_TEST

static const char *const bodies[] = {
    "{\"a\":1}",
    "{\"a\":2}",
    "{\"a\":\"1\"}",
    "{\"a\":[1]}",
    "{\"a\":1,\"b\":null}",
    "{\"a\":1,\"b\":\"\"}",
    "{}",
};

START_TEST(each_thread_and_each_body_is_another_request)
{
    uint8_t seen[2 * DAC_ARRAY_LEN(bodies)][32], same[32];
    struct id threads[2] = {{{0}}};
    struct json_object *o;
    size_t n = 0;

    ck_assert(id_parse(THREAD_1, strlen(THREAD_1), &threads[1]));
    for (size_t t = 0; t < 2; t++)
        for (size_t i = 0; i < DAC_ARRAY_LEN(bodies); i++) {
            o = json(bodies[i]);
            ck_assert_int_eq(key_of_body(&threads[t], o, seen[n]), DAC_OK);
            json_object_put(o);
            for (size_t k = 0; k < n; k++)
                ck_assert_mem_ne(seen[k], seen[n], 32);
            n++;
        }
    o = json(" { \"b\" : null, \"a\" : 1 } ");
    ck_assert_int_eq(key_of_body(&threads[0], o, same), DAC_OK);
    ck_assert_mem_eq(same, seen[4], 32);
    json_object_put(o);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("key");
    TCase *t = tcase_create("key");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(t, find_digest, NULL);
    tcase_add_test(t, every_difference_that_counts_makes_another_key);
    tcase_add_loop_test(t, order_and_spelling_of_members_do_not_count, 0,
                        DAC_ARRAY_LEN(same_params));
    tcase_add_test(t, the_question_is_the_same_whatever_comes_with_it);
    tcase_add_test(t, private_keys_belong_to_one_turn);
    tcase_add_test(t, org_digest_is_sha256_of_the_name);
    tcase_add_test(t, headers_and_bodies_have_digests_that_last);
    tcase_add_test(t, each_thread_and_each_body_is_another_request);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
