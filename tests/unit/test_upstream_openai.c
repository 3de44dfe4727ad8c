/*
 * The dialect "openai" and the ends of answers, without a network: what events make of
 * the callbacks, the request's body, statuses, Retry-After, and what is quoted.
 */
#include <check.h>
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "upstream/chunk.h"
#include "upstream/dialect.h"
#include "upstream/outcome.h"

#define D(text) "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" text "\"}}]}"
#define STOP    "{\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}"

/* --- a reader whose callbacks are written down ---------------------------------------
 */

struct seen {
    struct buf log; /* "t:text;" and so on */
    struct reader reader;
    struct buf scratch;
    struct buf unescaped;
    bool mute_at_text;
};

static void put(struct seen *s, const char *kind, const char *p, size_t n)
{
    buf_puts(&s->log, kind);
    buf_append(&s->log, p, n);
    buf_putc(&s->log, ';');
}

static void on_text(void *arg, const char *p, size_t n)
{
    struct seen *s = arg;

    put(s, "t:", p, n);
    if (s->mute_at_text)
        s->reader.muted = true;
}

static void on_reasoning(void *arg, const char *p, size_t n)
{
    put(arg, "r:", p, n);
}

static void on_tool(void *arg, const char *p, size_t n)
{
    put(arg, "tool:", p, n);
}

static void on_citations(void *arg, const char *p, size_t n)
{
    put(arg, "c:", p, n);
}

static void on_usage(void *arg, const struct upstream_usage *u)
{
    struct seen *s = arg;

    buf_printf(&s->log, "u:%lld,%lld,%lld;", (long long)u->prompt_tokens,
               (long long)u->completion_tokens, (long long)u->total_tokens);
}

static const struct upstream_ops ops = {
    .on_text = on_text,
    .on_reasoning = on_reasoning,
    .on_tool = on_tool,
    .on_citations = on_citations,
    .on_usage = on_usage,
};

static struct seen *seen_new(void)
{
    struct seen *s = calloc(1, sizeof(*s));

    s->log = BUF_INIT(65536);
    s->scratch = BUF_INIT(65536);
    s->unescaped = BUF_INIT(65536);
    s->reader.unescaped = &s->unescaped;
    s->reader.scratch = &s->scratch;
    s->reader.ops = &ops;
    s->reader.arg = s;
    return s;
}

static void seen_free(struct seen *s)
{
    reader_reset(&s->reader);
    buf_free(&s->log);
    buf_free(&s->scratch);
    buf_free(&s->unescaped);
    free(s);
}

/* Events are separated by LF. */
static void read_events(struct seen *s, const char *events)
{
    while (*events && reader_open(&s->reader)) {
        size_t n = strcspn(events, "\n");
        char *copy = malloc(n + 1); /* of its own size: no byte behind it is read */
        struct sse_event ev = {.name = "", .data = copy, .len = n};
        memcpy(copy, events, n);
        dialect_openai.read_event(&s->reader, &ev);
        free(copy);
        events += n + (events[n] == '\n');
    }
}

/* --- events ---------------------------------------------------------------------------
 */

static const struct {
    const char *name;
    const char *events;
    const char *log;
} answers[] = {
    {"text", D("Hello") "\n" D(" world"), "t:Hello;t: world;"},
    {"role chunk, null and empty content",
     "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n" D(
         "") "\n"
             "{\"choices\":[{\"delta\":null}]}\n{\"choices\":[]}\n{\"choices\":null}\n{}",
     ""},
    {"other choices are not read",
     "{\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"x\"},"
     "{\"index\":0,\"delta\":{\"content\":\"a\"}}]}",
     "t:a;"},
    {"reasoning",
     "{\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\",\"content\":null}}]}\n"
     "{\"choices\":[{\"delta\":{\"reasoning\":\"so\",\"content\":\"a\"}}]}",
     "r:hm;r:so;t:a;"},
    {"parts",
     "{\"choices\":[{\"delta\":{\"content\":[{\"type\":\"text\",\"text\":\"a\"},1,"
     "{\"type\":\"image\"},{\"type\":\"text\",\"text\":\"b\"}]}}]}",
     "t:a;t:b;"},
    {"refusal", "{\"choices\":[{\"delta\":{\"refusal\":\"no\"}}]}", "t:no;"},
    {"tools",
     "{\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":"
     "{\"name\":\"f\",\"arguments\":\"{\\\"x\\\"\"}}]}}]}\n"
     "{\"choices\":[{\"delta\":{\"tool_calls\":[]}}]}",
     "tool:[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":"
     "\"{\\\"x\\\"\"}}];"},
    {"usage and null",
     STOP
     "\n{\"choices\":[],\"usage\":null}\n"
     "{\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,"
     "\"total_tokens\":3}}\n{\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":-4}}\n"
     "{\"usage\":{\"prompt_tokens\":\"x\"}}",
     "u:1,2,3;u:7,-1,-1;"},
    {"usage so far",
     "{\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"total_tokens\":1}}\n"
     "{\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}],"
     "\"usage\":{\"total_tokens\":2}}",
     "t:a;t:b;u:-1,-1,2;"},
    {"the same sources in each chunk",
     "{\"citations\":[\"u\"],\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n"
     "{\"citations\":[\"u\"],\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n"
     "{\"citations\": [ \"u\" ],\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\n"
     "{\"citations\":[\"u\",\"v\"],\"choices\":[{\"delta\":{\"content\":\"d\"}}]}\n"
     "{\"citations\":[\"u\",\"v\"],\"choices\":[{\"delta\":{\"content\":\"e\"}}]}",
     "c:[\"u\"];t:a;t:b;t:c;c:[\"u\",\"v\"];t:d;t:e;"},
    {"escapes", D("a\\n\\\"\\\\\\/\\t"), "t:a\n\"\\/\t;"},
    {"citations, once",
     "{\"citations\":[\"u1\"],\"choices\":[]}\n{\"citations\":[\"u1\"]}\n"
     "{\"citations\":[]}\n{\"citations\":[\"u1\",\"u2\"]}",
     "c:[\"u1\"];c:[\"u1\",\"u2\"];"},
    {"search results", "{\"search_results\":[{\"title\":\"a/b\",\"url\":\"u\"}]}",
     "c:[{\"title\":\"a/b\",\"url\":\"u\"}];"},
    {"characters", D("\xC3\xA4\\u20ac\\ud83d\\ude00"),
     "t:\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80;"},
    {"lone surrogate", D("a\\ud83db"),
     "t:a\xEF\xBF\xBD"
     "b;"},
    {"NUL", D("a\\u0000b"),
     "t:a\xEF\xBF\xBD"
     "b;"},
    {"bytes that are no UTF-8",
     D("a\xFF"
       "b"),
     "t:a\xEF\xBF\xBD"
     "b;"},
    {"unknown members",
     "{\"id\":1,\"x\":{\"y\":[1,2]},\"choices\":[{\"delta\":{\"content\":\"a\","
     "\"z\":1},\"logprobs\":null}]}",
     "t:a;"},
    {"null error", "{\"error\":null,\"choices\":[{\"delta\":{\"content\":\"a\"}}]}",
     "t:a;"},
    {"empty event", "\n" D("a"), "t:a;"},
    {"nothing behind the end", D("a") "\n" STOP "\n[DONE]\n" D("b"), "t:a;"},
    {"nothing behind junk", D("a") "\nnonsense\n" D("b"), "t:a;"},
};

START_TEST(reads_events)
{
    struct seen *s = seen_new();

    read_events(s, answers[_i].events);
    ck_assert_msg(strcmp(buf_cstr(&s->log), answers[_i].log) == 0, "%s: \"%s\"",
                  answers[_i].name, buf_cstr(&s->log));
    seen_free(s);
}
END_TEST

START_TEST(muted_in_a_callback)
{
    struct seen *s = seen_new();

    s->mute_at_text = true;
    read_events(
        s, "{\"choices\":[{\"delta\":{\"content\":[{\"text\":\"a\"},{\"text\":\"b\"}],"
           "\"tool_calls\":[{}]}}],\"usage\":{\"total_tokens\":1}}\n" D("c"));
    ck_assert_str_eq(buf_cstr(&s->log), "t:a;");
    seen_free(s);
}
END_TEST

/* --- the quick way --------------------------------------------------------------------
 */

#define C(members) "{\"choices\":[{" members "}]}"

static const struct {
    const char *chunk;
    bool quick;
    const char *text;
} chunks[] = {
    {D("abc"), true, "abc"},
    {D(""), true, ""},
    {D("a\\n\\u00e4"), true, "a\\n\\u00e4"},
    {" { \"choices\" : [ { \"delta\" : { \"content\" : \"a\" } } ] } ", true, "a"},
    {"{\"id\":1,\"o\":{\"a\":[1,-2.5e+3,true,false,null,\"x\"]},\"choices\":[{\"index\":"
     "0,"
     "\"delta\":{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":null},"
     "\"logprobs\":"
     "null,\"finish_reason\":null}],\"usage\":null,\"error\":null}",
     true, "a"},
    {"{\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]"
     ","
     "\"usage\":{\"total_tokens\":3}}",
     true, "a"},
    {C("\"delta\":{\"content\":null}"), false, ""},
    {C("\"delta\":{\"content\":[]}"), false, ""},
    {C("\"delta\":null"), false, ""},
    {C("\"index\":1,\"delta\":{\"content\":\"a\"}"), false, ""},
    {C("\"index\":0.5,\"delta\":{\"content\":\"a\"}"), false, ""},
    {C("\"delta\":{\"content\":\"a\",\"reasoning\":\"b\"}"), false, ""},
    {C("\"delta\":{\"content\":\"a\",\"refusal\":\"b\"}"), false, ""},
    {C("\"delta\":{\"content\":\"a\",\"tool_calls\":[]}"), false, ""},
    {C("\"delta\":{\"content\":\"a\",\"content\":\"b\"}"), false, ""},
    {C("\"delta\":{\"content\":\"a\"},\"delta\":{}"), false, ""},
    {C("\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\""), false, ""},
    {C("\"delta\":{\"cont\\u0065nt\":\"a\"}"), false, ""},
    {"{\"choices\":[{\"delta\":{\"content\":\"a\"}},{}]}", false, ""},
    {"{\"choices\":[]}", false, ""},
    {"{\"error\":{},\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {"{\"object\":\"error\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {D("a") "x", false, ""},
    {D("a") "}", false, ""},
    {D("a\tb"), false, ""},
    {D("a\\x"), false, ""},
    {D("a\\u12g4"), false, ""},
    {"{\"a\":01,\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {"{\"a\":1.,\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {"{\"a\":NaN,\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {"{\"a\":1,,\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {"{\"a\":[1,],\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {"{'a':1,\"choices\":[{\"delta\":{\"content\":\"a\"}}]}", false, ""},
    {"[]", false, ""},
    {"", false, ""},
};

START_TEST(takes_the_quick_way)
{
    struct chunk c;
    size_t n = strlen(chunks[_i].chunk);
    char *copy = malloc(n + 1);

    memcpy(copy, chunks[_i].chunk, n);
    ck_assert_msg(chunk_scan(copy, n, &c) == chunks[_i].quick, "%s", chunks[_i].chunk);
    if (chunks[_i].quick) {
        ck_assert_uint_eq(c.text_len, strlen(chunks[_i].text));
        ck_assert_int_eq(memcmp(c.text, chunks[_i].text, c.text_len), 0);
        for (size_t k = 0; k < n; k++) { /* no part of it is taken */
            char *part = malloc(k + 1);
            memcpy(part, copy, k);
            if (memchr("} \n", copy[n - 1], 3) && strspn(copy + k, " ") != n - k)
                ck_assert(!chunk_scan(part, k, &c));
            free(part);
        }
    }
    free(copy);
}
END_TEST

START_TEST(deep_chunks_go_the_general_way)
{
    struct buf b = BUF_INIT(4096);
    struct chunk c;

    for (int depth = 10; depth < 60; depth += 40) {
        buf_reset(&b);
        buf_puts(&b, "{\"a\":");
        for (int i = 0; i < depth; i++)
            buf_putc(&b, '[');
        for (int i = 0; i < depth; i++)
            buf_putc(&b, ']');
        buf_puts(&b, ",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}");
        ck_assert_int_eq(chunk_scan(b.data, b.len, &c), depth == 10);
    }
    buf_free(&b);
}
END_TEST

/* --- ends -----------------------------------------------------------------------------
 */

static const struct {
    const char *name;
    const char *events;
    bool cut;
    enum upstream_outcome outcome;
    const char *code;
    bool retryable;
} ends[] = {
    {"complete", D("a") "\n" STOP "\n[DONE]", false, UPSTREAM_COMPLETE, "", false},
    {"complete without end mark", D("a") "\n" STOP, false, UPSTREAM_COMPLETE, "", false},
    {"complete without text", STOP "\n[DONE]", false, UPSTREAM_COMPLETE, "", false},
    {"a blank behind the mark", D("a") "\n" STOP "\n[DONE] ", false, UPSTREAM_COMPLETE,
     "", false},
    {"cut in front of the mark", D("a") "\n" STOP, true, UPSTREAM_BROKEN, "cut_off",
     true},
    {"cut in the text", D("a"), true, UPSTREAM_BROKEN, "cut_off", true},
    {"ended in the text", D("a"), false, UPSTREAM_BROKEN, "cut_off", true},
    {"mark without reason", D("a") "\n[DONE]", false, UPSTREAM_BROKEN, "no_finish_reason",
     true},
    {"mark alone", "[DONE]", false, UPSTREAM_BAD, "empty_answer", true},
    {"nothing", "", false, UPSTREAM_BAD, "empty_answer", true},
    {"cut in front of all", "", true, UPSTREAM_BAD, "cut_off", true},
    {"ended behind the role", D(""), false, UPSTREAM_BAD, "cut_off", true},
    {"junk", "{\"a\":", false, UPSTREAM_BAD, "malformed_stream", true},
    {"junk in the text", D("a") "\n<html>", false, UPSTREAM_BROKEN, "malformed_stream",
     true},
    {"junk behind an object", D("a") "x", false, UPSTREAM_BAD, "malformed_stream", true},
    {"an array", "[1]", false, UPSTREAM_BAD, "malformed_stream", true},
    {"null", "null", false, UPSTREAM_BAD, "malformed_stream", true},
    {"error", "{\"error\":{\"message\":\"m\"}}", false, UPSTREAM_BAD, "provider_error",
     true},
    {"error as a string", "{\"error\":\"m\"}", false, UPSTREAM_BAD, "provider_error",
     true},
    {"error as an object", "{\"object\":\"error\",\"message\":\"m\"}", false,
     UPSTREAM_BAD, "provider_error", true},
    {"error in the text", D("a") "\n{\"error\":{}}\n" STOP "\n[DONE]", false,
     UPSTREAM_BROKEN, "provider_error", true},
    {"error behind the reason", D("a") "\n" STOP "\n{\"error\":{}}", false,
     UPSTREAM_BROKEN, "provider_error", true},
};

START_TEST(ends_honestly)
{
    struct seen *s = seen_new();
    struct upstream_end end;

    read_events(s, ends[_i].events);
    reader_outcome(&s->reader, ends[_i].cut, &end);
    ck_assert_msg(end.outcome == ends[_i].outcome && strcmp(end.code, ends[_i].code) == 0,
                  "%s: %d %s", ends[_i].name, (int)end.outcome, end.code);
    ck_assert_str_eq(end.finish_reason, end.outcome == UPSTREAM_COMPLETE ? "stop" : "");
    ck_assert_int_eq(end.message[0] == '\0', end.outcome == UPSTREAM_COMPLETE);
    seen_free(s);
}
END_TEST

START_TEST(content_has_a_limit)
{
    struct seen *s = seen_new();
    struct upstream_end end;

    s->reader.max = 5;
    read_events(s, D("abc") "\n" D("de") "\n" D("f") "\n" D("g"));
    ck_assert_str_eq(buf_cstr(&s->log), "t:abc;t:de;");
    reader_outcome(&s->reader, false, &end);
    ck_assert_int_eq(end.outcome, UPSTREAM_TOO_LARGE);
    ck_assert_str_eq(end.code, "answer_too_large");
    ck_assert(!end.retryable);
    seen_free(s);
}
END_TEST

START_TEST(strange_reasons_become_words)
{
    struct seen *s = seen_new();

    read_events(
        s,
        "{\"choices\":[{\"finish_reason\":\"a b\\\"\\n\xC3\xA4_-.0123456789012345678901"
        "23456789\"}]}");
    ck_assert_str_eq(s->reader.finish_reason, "a_b_____-.012345678901234567890");
    seen_free(s);
}
END_TEST

/* --- request --------------------------------------------------------------------------
 */

START_TEST(writes_the_request)
{
    struct json_error err;
    struct json_object *messages, *params, *body;
    struct buf b = BUF_INIT(4096);

    const char *m = "[{\"role\":\"user\",\"content\":\"a/\\\"b\"}]";
    ck_assert_int_eq(json_parse_strict(m, strlen(m), &messages, &err), DAC_OK);
    const char *p =
        "{\"temperature\":0.5,\"stream\":false,\"model\":\"x\",\"stop\":null,"
        "\"stream_options\":{},\"messages\":[],\"tools\":[{\"type\":\"function\"}]}";
    ck_assert_int_eq(json_parse_strict(p, strlen(p), &params, &err), DAC_OK);
    struct upstream_request req = {
        .model = "m\"1", .messages = messages, .params = params};
    dialect_openai.put_request(&b, &req);
    ck_assert_str_eq(
        buf_cstr(&b),
        "{\"model\":\"m\\\"1\",\"messages\":[{\"role\":\"user\",\"content\":"
        "\"a/\\\"b\"}],\"temperature\":0.5,\"stop\":null,\"tools\":[{\"type\":"
        "\"function\"}],\"stream\":true,\"stream_options\":{\"include_usage\":"
        "true}}");
    ck_assert_int_eq(json_parse_strict(b.data, b.len, &body, &err), DAC_OK);
    json_object_put(body);
    json_object_put(messages);
    json_object_put(params);
    buf_free(&b);
}
END_TEST

/* --- statuses -------------------------------------------------------------------------
 */

static const struct {
    int status;
    enum upstream_outcome outcome;
    const char *code;
    bool retryable;
} statuses[] = {
    {400, UPSTREAM_REFUSED, "provider_refused", false},
    {401, UPSTREAM_AUTH, "provider_auth", false},
    {402, UPSTREAM_AUTH, "provider_auth", false},
    {403, UPSTREAM_AUTH, "provider_auth", false},
    {404, UPSTREAM_REFUSED, "provider_refused", false},
    {408, UPSTREAM_BAD, "provider_error", true},
    {413, UPSTREAM_REFUSED, "provider_refused", false},
    {422, UPSTREAM_REFUSED, "provider_refused", false},
    {429, UPSTREAM_RATE_LIMITED, "rate_limited", true},
    {500, UPSTREAM_BAD, "provider_error", true},
    {502, UPSTREAM_BAD, "provider_error", true},
    {503, UPSTREAM_OVERLOADED, "overloaded", true},
    {504, UPSTREAM_BAD, "provider_error", true},
    {529, UPSTREAM_OVERLOADED, "overloaded", true},
    {301, UPSTREAM_BAD, "redirect", false},
    {307, UPSTREAM_BAD, "redirect", false},
    {999, UPSTREAM_BAD, "provider_error", true},
};

START_TEST(statuses_have_meanings)
{
    struct upstream_end end;
    char body[] = "{\"error\":{\"message\":\"because\"}}";

    outcome_from_status(&end, statuses[_i].status, body, strlen(body), NULL);
    ck_assert_int_eq(end.outcome, statuses[_i].outcome);
    ck_assert_str_eq(end.code, statuses[_i].code);
    ck_assert_int_eq(end.retryable, statuses[_i].retryable);
    ck_assert_int_eq(end.http_status, statuses[_i].status);
    ck_assert_int_eq(strstr(end.message, ": because") != NULL,
                     statuses[_i].status / 100 != 3);
}
END_TEST

static const struct {
    const char *body;
    const char *message;
} bodies[] = {
    {"{\"error\":{\"message\":\"a\"}}", "the provider failed (500): a"},
    {"{\"error\":\"a\"}", "the provider failed (500): a"},
    {"{\"message\":\"a\"}", "the provider failed (500): a"},
    {"{\"detail\":\"a\"}", "the provider failed (500): a"},
    {"{\"detail\":[1]}", "the provider failed (500)"},
    {"<html>", "the provider failed (500)"},
    {"", "the provider failed (500)"},
    {"{\"error\":{\"message\":\"a\\u0000b\\n\\u001bc\"}}",
     "the provider failed (500): a"},
    {"{\"error\":{\"message\":\"a\\r\\nb\\u007f\"}}", "the provider failed (500): a  b "},
    {"{\"error\":{\"message\":\"a\xFF\"}}", "the provider failed (500): a\xEF\xBF\xBD"},
    {"{\"error\":{\"message\":\"key sk-12345678abc, bad: 'sk-12345xyz'\"}}",
     "the provider failed (500): key ***, bad: '***'"},
};

START_TEST(quotes_the_provider)
{
    struct upstream_end end;

    outcome_from_status(&end, 500, bodies[_i].body, strlen(bodies[_i].body),
                        "sk-12345678abc");
    ck_assert_str_eq(end.message, bodies[_i].message);
}
END_TEST

START_TEST(long_quotes_are_cut_between_characters)
{
    struct upstream_end end;
    char quote[1000];

    for (size_t shift = 0; shift < 3; shift++) {
        memset(quote, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof(quote); i += 3)
            memcpy(quote + i, "\xE2\x82\xAC", 4);
        outcome_set(&end, UPSTREAM_BAD, "c", "m");
        outcome_quote(&end, quote, NULL);
        ck_assert_uint_lt(strlen(end.message), sizeof(end.message));
        ck_assert_uint_gt(strlen(end.message), sizeof(end.message) - 5);
        ck_assert(utf8_valid(end.message, strlen(end.message)));
    }
}
END_TEST

static const struct {
    int error;
    enum upstream_outcome outcome;
    const char *code;
    bool retryable;
} errors[] = {
    {CURLE_COULDNT_CONNECT, UPSTREAM_BAD, "connect_failed", true},
    {CURLE_COULDNT_RESOLVE_HOST, UPSTREAM_BAD, "connect_failed", true},
    {CURLE_OPERATION_TIMEDOUT, UPSTREAM_TIMEOUT, "connect_timeout", true},
    {CURLE_SSL_CONNECT_ERROR, UPSTREAM_BAD, "tls_failed", true},
    {CURLE_PEER_FAILED_VERIFICATION, UPSTREAM_BAD, "tls_failed", false},
    {CURLE_GOT_NOTHING, UPSTREAM_BAD, "cut_off", true},
    {CURLE_RECV_ERROR, UPSTREAM_BAD, "cut_off", true},
    {CURLE_OUT_OF_MEMORY, UPSTREAM_BAD, "no_memory", true},
};

START_TEST(errors_of_the_connection)
{
    struct upstream_end end;

    outcome_from_curl(&end, errors[_i].error);
    ck_assert_int_eq(end.outcome, errors[_i].outcome);
    ck_assert_str_eq(end.code, errors[_i].code);
    ck_assert_int_eq(end.retryable, errors[_i].retryable);
    ck_assert_uint_gt(strlen(end.message), 10);
}
END_TEST

static const struct {
    const char *value;
    uint64_t ms;
} waits[] = {
    {"0", 0},
    {"1", 1000},
    {" 20 ", 20000},
    {"86401", 86400000},
    {"99999999", 86400000},
    {"-1", 0},
    {"1.5", 0},
    {"", 0},
    {"soon", 0},
    {"Thu, 01 Jan 2026 00:00:30 GMT", 30000},
    {"Thu, 01 Jan 2026 00:00:00 GMT", 0},
    {"Wed, 31 Dec 2025 23:59:59 GMT", 0},
    {"Fri, 01 Jan 2027 00:00:00 GMT", 86400000},
};

START_TEST(reads_retry_after)
{
    const int64_t now = INT64_C(1767225600) * 1000000; /* 2026-01-01 */

    ck_assert_uint_eq(outcome_retry_after(waits[_i].value, strlen(waits[_i].value), now),
                      waits[_i].ms);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("upstream_openai");
    TCase *tc = tcase_create("all");

    tcase_add_loop_test(tc, reads_events, 0, (int)DAC_ARRAY_LEN(answers));
    tcase_add_test(tc, muted_in_a_callback);
    tcase_add_loop_test(tc, takes_the_quick_way, 0, (int)DAC_ARRAY_LEN(chunks));
    tcase_add_test(tc, deep_chunks_go_the_general_way);
    tcase_add_loop_test(tc, ends_honestly, 0, (int)DAC_ARRAY_LEN(ends));
    tcase_add_test(tc, content_has_a_limit);
    tcase_add_test(tc, strange_reasons_become_words);
    tcase_add_test(tc, writes_the_request);
    tcase_add_loop_test(tc, statuses_have_meanings, 0, (int)DAC_ARRAY_LEN(statuses));
    tcase_add_loop_test(tc, quotes_the_provider, 0, (int)DAC_ARRAY_LEN(bodies));
    tcase_add_test(tc, long_quotes_are_cut_between_characters);
    tcase_add_loop_test(tc, errors_of_the_connection, 0, (int)DAC_ARRAY_LEN(errors));
    tcase_add_loop_test(tc, reads_retry_after, 0, (int)DAC_ARRAY_LEN(waits));
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
