/*
 * The reader of one answer. Honest about endings: complete is only what named a
 * finish_reason and was not cut behind it. Worker process.
 */
#include "upstream/reader.h"

#include <string.h>

#include "base/json_build.h"
#include "upstream/outcome.h"

#define SOURCES_MAX (UINT64_C(64) << 10)

void reader_reset(struct reader *r)
{
    json_object_put(r->citations);
    buf_free(&r->sources);
    *r = (struct reader){.scratch = r->scratch, .unescaped = r->unescaped};
}

bool reader_open(const struct reader *r)
{
    return !r->muted && !r->failed && !r->done;
}

static bool count_content(struct reader *r, size_t n)
{
    if (!reader_open(r))
        return false;
    if (r->max > 0 && n > r->max - r->bytes) {
        r->failed = true;
        outcome_set(&r->end, UPSTREAM_TOO_LARGE, "answer_too_large",
                    "the answer is longer than allowed");
        return false;
    }
    r->bytes += n;
    r->content = true;
    r->pieces++;
    return true;
}

static void put_text(struct reader *r, const char *s, size_t n,
                     void (*fn)(void *arg, const char *s, size_t n))
{
    if (n == 0)
        return;
    if (memchr(s, '\0', n) || !utf8_valid(s, n)) {
        buf_reset(r->scratch);
        utf8_put_storable(r->scratch, s, n);
        if (r->scratch->failed) {
            reader_fail(r, "no_memory", "out of memory", NULL);
            return;
        }
        s = r->scratch->data;
        n = r->scratch->len;
    }
    if (count_content(r, n) && fn)
        fn(r->arg, s, n);
}

void reader_text(struct reader *r, const char *s, size_t n)
{
    put_text(r, s, n, r->ops->on_text);
}

void reader_reasoning(struct reader *r, const char *s, size_t n)
{
    put_text(r, s, n, r->ops->on_reasoning);
}

/* Serialised and storable in `scratch`. */
static bool put_json(struct reader *r, struct json_object *o)
{
    buf_reset(r->scratch);
    json_put_object(r->scratch, o);
    if (r->scratch->failed) {
        reader_fail(r, "no_memory", "out of memory", NULL);
        return false;
    }
    return true;
}

void reader_tool(struct reader *r, struct json_object *calls)
{
    if (!put_json(r, calls) || !count_content(r, r->scratch->len))
        return;
    if (r->ops->on_tool)
        r->ops->on_tool(r->arg, r->scratch->data, r->scratch->len);
}

void reader_citations(struct reader *r, struct json_object *list)
{
    if (!reader_open(r) || json_object_array_length(list) == 0 ||
        (r->citations && json_object_equal(r->citations, list)))
        return;
    json_object_put(r->citations);
    r->citations = json_object_get(list);
    if (r->ops->on_citations && put_json(r, list))
        r->ops->on_citations(r->arg, r->scratch->data, r->scratch->len);
}

bool reader_has_sources(const struct reader *r, const char *s, size_t n)
{
    return r->citations && r->sources.len == n && memcmp(r->sources.data, s, n) == 0;
}

void reader_keep_sources(struct reader *r, const char *s, size_t n)
{
    buf_reset(&r->sources);
    r->sources.max = SOURCES_MAX;
    if (buf_append(&r->sources, s, n) != DAC_OK)
        buf_reset(&r->sources);
}

void reader_usage(struct reader *r, const struct upstream_usage *u)
{
    if (reader_open(r) && r->ops->on_usage)
        r->ops->on_usage(r->arg, u);
}

void reader_finish(struct reader *r, const char *reason)
{
    size_t n = strnlen(reason, sizeof(r->finish_reason) - 1);

    for (size_t i = 0; i < n; i++) {
        char c = reason[i];
        bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                    (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
        r->finish_reason[i] = word ? c : '_';
    }
    r->finish_reason[n] = '\0';
    r->finished = n > 0;
}

void reader_fail(struct reader *r, const char *code, const char *message,
                 const char *quote)
{
    if (!reader_open(r))
        return;
    r->failed = true;
    outcome_set(&r->end, r->content ? UPSTREAM_BROKEN : UPSTREAM_BAD, code, message);
    if (quote)
        outcome_quote(&r->end, quote, r->key);
}

struct json_object *reader_parse(struct reader *r, const char *s, size_t n)
{
    struct json_object *o = NULL;
    size_t at;
    enum dac_err e = json_build(s, n, &o, &at);

    if (e == DAC_OK && json_object_is_type(o, json_type_object))
        return o;
    json_object_put(o);
    if (e == DAC_E_NOMEM)
        reader_fail(r, "no_memory", "out of memory", NULL);
    else
        reader_fail(r, "malformed_stream", "the provider sent something that is not JSON",
                    NULL);
    return NULL;
}

void reader_outcome(const struct reader *r, bool cut, struct upstream_end *end)
{
    enum upstream_outcome broken = r->content ? UPSTREAM_BROKEN : UPSTREAM_BAD;

    if (r->failed) {
        *end = r->end;
    } else if (r->finished && !cut) {
        *end = (struct upstream_end){.outcome = UPSTREAM_COMPLETE};
        memcpy(end->finish_reason, r->finish_reason, sizeof(end->finish_reason));
    } else if (r->done && r->content) {
        outcome_set(end, broken, "no_finish_reason",
                    "the provider ended the answer without saying why");
    } else if (r->done || (!cut && r->events == 0)) {
        outcome_set(end, broken, "empty_answer", "the provider's answer was empty");
    } else {
        outcome_set(end, broken, "cut_off", "the provider's answer was cut off");
    }
}
