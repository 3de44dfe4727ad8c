/*
 * What dac-mock's specs let through and what they refuse, and how they lie over each
 * other. The mock is no part of the library: its file comes in whole.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "tools/mock/spec.c"

#define MS NS_PER_MS

static const struct {
    const char *words;
    size_t offset;
    uint64_t value;
} numbers[] = {
    {"", offsetof(struct spec, tokens), 20},
    {"tokens=0", offsetof(struct spec, tokens), 0},
    {"  tokens=3;gap=2ms ", offsetof(struct spec, gap), 2 * MS},
    {"ttft=200ms", offsetof(struct spec, ttft), 200 * MS},
    {"ttft=200", offsetof(struct spec, ttft), 200 * MS},
    {"ttft=15us", offsetof(struct spec, ttft), 15000},
    {"ttft=2s", offsetof(struct spec, ttft), 2000 * MS},
    {"ttft=1s ttft=3ns", offsetof(struct spec, ttft), 3},
    {"", offsetof(struct spec, cut), SPEC_NEVER},
    {"cut=0", offsetof(struct spec, cut), 0},
    {"cut=4 cut=never", offsetof(struct spec, cut), SPEC_NEVER},
    {"crlf", offsetof(struct spec, eol), SPEC_EOL_CRLF},
    {"crlf=0", offsetof(struct spec, eol), SPEC_EOL_LF},
    {"eol=cr", offsetof(struct spec, eol), SPEC_EOL_CR},
    {"delay_headers=1", offsetof(struct spec, headers), SPEC_HEADERS_LATE},
    {"role=none", offsetof(struct spec, role), SPEC_ROLE_NONE},
    {"barrier=a,b@7", offsetof(struct spec, barrier_count), 2},
    {"barrier=a@9", offsetof(struct spec, barriers[0].at), 9},
    {"barrier=a barrier_at=9", offsetof(struct spec, barriers[0].at), SPEC_NEVER},
};

START_TEST(words_are_read)
{
    struct spec s;
    char err[SPEC_ERR_SIZE];
    uint64_t got;

    spec_init(&s);
    ck_assert_int_eq(
        spec_parse_words(&s, numbers[_i].words, strlen(numbers[_i].words), err), DAC_OK);
    memcpy(&got, (char *)&s + numbers[_i].offset, sizeof(got));
    ck_assert_uint_eq(got, numbers[_i].value);
    spec_free(&s);
}
END_TEST

static const struct {
    const char *words;
    const char *err;
} refused[] = {
    {"tokens", NULL}, /* a key alone means 1 */
    {"token=3", "unknown key \"token\""},
    {"tokens=", "bad value of tokens: \"\""},
    {"tokens=-1", "bad value of tokens: \"-1\""},
    {"tokens=10000001", "bad value of tokens: \"10000001\""},
    {"ttft=1h", "bad value of ttft: \"1h\""},
    {"ttft=99999999999s", "bad value of ttft: \"99999999999s\""},
    {"crlf=2", "bad value of crlf: \"2\""},
    {"eol=", "bad value of eol: \"\""},
    {"eol=lf|crlf", "bad value of eol: \"lf|crlf\""},
    {"cut=x", "bad value of cut: \"x\""},
    {"status=600", "bad value of status: \"600\""},
    {"barrier=", "bad value of barrier: \"\""},
    {"barrier=a,,b", "bad value of barrier: \"a,,b\""},
    {"barrier=a@", "bad value of barrier: \"a@\""},
    {"barrier=a,b,c,d,e", "bad value of barrier: \"a,b,c,d,e\""},
    {"text=\"open", "unclosed quote or too long a value of text"},
    {"text=\"open\\\"", "unclosed quote or too long a value of text"},
    {"=1", "unknown key \"\""},
};

START_TEST(bad_words_are_named)
{
    struct spec s;
    char err[SPEC_ERR_SIZE] = "";
    enum dac_err rc;

    spec_init(&s);
    rc = spec_parse_words(&s, refused[_i].words, strlen(refused[_i].words), err);
    ck_assert_int_eq(rc, refused[_i].err ? DAC_E_INVALID : DAC_OK);
    if (refused[_i].err)
        ck_assert_str_eq(err, refused[_i].err);
    spec_free(&s);
}
END_TEST

static const struct {
    const char *message;
    const char *words; /* NULL: no directive */
} messages[] = {
    {"", NULL},
    {"[mock", NULL},
    {"[mock tokens=1", NULL},
    {"[mocktokens=1]", NULL},
    {"[mock ]", ""},
    {"Hi [mock tokens=1] there ]", "tokens=1"},
    {"[mock text=\"a]b\" cut=1]", "text=\"a]b\" cut=1"},
    {"[mock text=\"a\\\"]b\"] c]", "text=\"a\\\"]b\""},
    {"[mock text=\"open]", NULL},
};

START_TEST(a_directive_is_found)
{
    size_t n = 0;
    const char *got =
        spec_find_directive(messages[_i].message, strlen(messages[_i].message), &n);

    ck_assert_int_eq(got != NULL, messages[_i].words != NULL);
    if (got) {
        ck_assert_uint_eq(n, strlen(messages[_i].words));
        ck_assert_int_eq(memcmp(got, messages[_i].words, n), 0);
    }
}
END_TEST

START_TEST(only_named_keys_are_laid_over)
{
    static const char lower[] = "tokens=5 text=\"a b\" cut=2 barrier=x";
    static const char upper[] = "ttft=1ms cut=never text=c";
    struct spec a, b;
    char err[SPEC_ERR_SIZE];

    spec_init(&a);
    spec_init(&b);
    ck_assert_int_eq(spec_parse_words(&a, lower, sizeof(lower) - 1, err), DAC_OK);
    ck_assert_int_eq(spec_parse_words(&b, upper, sizeof(upper) - 1, err), DAC_OK);
    ck_assert_str_eq(a.text, "a b");
    ck_assert_int_eq(spec_overlay(&a, &b), DAC_OK);
    ck_assert_uint_eq(a.tokens, 5);
    ck_assert_uint_eq(a.ttft, MS);
    ck_assert_uint_eq(a.cut, SPEC_NEVER);
    ck_assert_str_eq(a.text, "c");
    ck_assert_uint_eq(a.barrier_count, 1);
    ck_assert(spec_names(&a, "tokens") && spec_names(&a, "ttft"));
    ck_assert(!spec_names(&a, "gap") && !spec_names(&a, "nonsense"));
    spec_free(&a);
    spec_free(&b);
}
END_TEST

START_TEST(json_means_the_same_as_words)
{
    static const char text[] =
        "{\"tokens\":7,\"ttft\":\"5ms\",\"crlf\":true,\"times\":3,"
        "\"body\":{\"error\":{\"message\":\"\xc3\xa9\"}},\"text\":\"\"}";
    static const char *const skip[] = {"match", "times", NULL};
    struct json_object *o;
    struct json_error wrong;
    struct spec s;
    char err[SPEC_ERR_SIZE];

    spec_init(&s);
    ck_assert_int_eq(json_parse_strict(text, sizeof(text) - 1, &o, &wrong), DAC_OK);
    ck_assert_int_eq(spec_parse_json(&s, o, skip, err), DAC_OK);
    ck_assert_uint_eq(s.tokens, 7);
    ck_assert_uint_eq(s.ttft, 5 * MS);
    ck_assert_uint_eq(s.eol, SPEC_EOL_CRLF);
    ck_assert_str_eq(s.body, "{\"error\":{\"message\":\"\xc3\xa9\"}}");
    ck_assert_str_eq(s.text, "");
    ck_assert_int_eq(spec_parse_json(&s, o, NULL, err), DAC_E_INVALID);
    ck_assert_str_eq(err, "unknown key \"times\"");
    json_object_put(o);
    spec_free(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mock_spec");
    TCase *t = tcase_create("spec");
    SRunner *runner;
    int failed;

    tcase_add_loop_test(t, words_are_read, 0, (int)DAC_ARRAY_LEN(numbers));
    tcase_add_loop_test(t, bad_words_are_named, 0, (int)DAC_ARRAY_LEN(refused));
    tcase_add_loop_test(t, a_directive_is_found, 0, (int)DAC_ARRAY_LEN(messages));
    tcase_add_test(t, only_named_keys_are_laid_over);
    tcase_add_test(t, json_means_the_same_as_words);
    suite_add_tcase(suite, t);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
