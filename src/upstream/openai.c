/*
 * The dialect "openai": chat completions, as OpenAI, Perplexity, vLLM, llama.cpp and many
 * others speak them. Reads choice 0 only. Members that are unknown are ignored, null is
 * as good as absent, and a top-level `error` ends the answer wherever it comes. Worker
 * process.
 */
#include <string.h>

#include "base/json.h"
#include "upstream/chunk.h"
#include "upstream/dialect.h"
#include "upstream/outcome.h"

/* Members that this side decides about. */
static const char *const own_members[] = {"model", "messages", "stream",
                                          "stream_options"};

static bool is_own(const char *name)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(own_members); i++)
        if (strcmp(name, own_members[i]) == 0)
            return true;
    return false;
}

static void put_request(struct buf *b, const struct upstream_request *req)
{
    buf_puts(b, "{\"model\":");
    json_put_string(b, req->model, strlen(req->model));
    buf_puts(b, ",\"messages\":");
    json_put_object(b, req->messages);
    if (req->params) {
        json_object_object_foreach(req->params, name, value)
        {
            if (is_own(name))
                continue;
            buf_putc(b, ',');
            json_put_string(b, name, strlen(name));
            buf_putc(b, ':');
            json_put_object(b, value);
        }
    }
    buf_puts(b, ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
}

/* A member of that type, or NULL. */
static struct json_object *member(struct json_object *o, const char *name,
                                  enum json_type type)
{
    struct json_object *v;

    if (!json_object_object_get_ex(o, name, &v) || !json_object_is_type(v, type))
        return NULL;
    return v;
}

static void read_text(struct reader *r, struct json_object *s)
{
    reader_text(r, json_object_get_string(s), (size_t)json_object_get_string_len(s));
}

/* Content is a string, or with some an array of parts. */
static void read_content(struct reader *r, struct json_object *delta)
{
    struct json_object *v;
    struct json_object *text;

    if (!json_object_object_get_ex(delta, "content", &v))
        return;
    if (json_object_is_type(v, json_type_string)) {
        read_text(r, v);
    } else if (json_object_is_type(v, json_type_array)) {
        size_t n = json_object_array_length(v);
        for (size_t i = 0; i < n; i++) {
            struct json_object *part = json_object_array_get_idx(v, i);
            if (json_object_is_type(part, json_type_object) &&
                (text = member(part, "text", json_type_string)))
                read_text(r, text);
        }
    }
}

static void read_delta(struct reader *r, struct json_object *delta)
{
    struct json_object *v = member(delta, "reasoning_content", json_type_string);

    if (!v)
        v = member(delta, "reasoning", json_type_string);
    if (v)
        reader_reasoning(r, json_object_get_string(v),
                         (size_t)json_object_get_string_len(v));
    read_content(r, delta);
    if ((v = member(delta, "refusal", json_type_string)))
        read_text(r, v);
    if ((v = member(delta, "tool_calls", json_type_array)) &&
        json_object_array_length(v) > 0)
        reader_tool(r, v);
}

static void read_choice(struct reader *r, struct json_object *choice)
{
    struct json_object *v;

    if ((v = member(choice, "index", json_type_int)) && json_object_get_int64(v) != 0)
        return;
    if ((v = member(choice, "delta", json_type_object)))
        read_delta(r, v);
    if ((v = member(choice, "finish_reason", json_type_string)))
        reader_finish(r, json_object_get_string(v));
}

static int64_t count_of(struct json_object *usage, const char *name)
{
    struct json_object *v = member(usage, name, json_type_int);
    int64_t n = v ? json_object_get_int64(v) : -1;

    return n < 0 ? -1 : n;
}

/* Counts that come with text are of the answer so far: the last ones count. */
static void read_usage(struct reader *r, struct json_object *usage)
{
    struct upstream_usage u = {
        .prompt_tokens = count_of(usage, "prompt_tokens"),
        .completion_tokens = count_of(usage, "completion_tokens"),
        .total_tokens = count_of(usage, "total_tokens"),
    };

    if (r->finished &&
        (u.prompt_tokens >= 0 || u.completion_tokens >= 0 || u.total_tokens >= 0))
        reader_usage(r, &u);
}

static void read_chunk(struct reader *r, struct json_object *chunk)
{
    struct json_object *v;

    if ((v = member(chunk, "citations", json_type_array)) ||
        (v = member(chunk, "search_results", json_type_array)))
        reader_citations(r, v);
    if ((v = member(chunk, "choices", json_type_array))) {
        size_t n = json_object_array_length(v);
        for (size_t i = 0; i < n && reader_open(r); i++) {
            struct json_object *choice = json_object_array_get_idx(v, i);
            if (json_object_is_type(choice, json_type_object))
                read_choice(r, choice);
        }
    }
    if ((v = member(chunk, "usage", json_type_object)))
        read_usage(r, v);
}

/* The usual chunk; false: nothing was done. */
static bool read_text_chunk(struct reader *r, const struct sse_event *ev)
{
    struct chunk c;

    if (r->finished || !chunk_scan(ev->data, ev->len, &c))
        return false;
    if (c.citations && !reader_has_sources(r, c.citations, c.citations_len))
        return false;
    if (!c.escaped) {
        reader_text(r, c.text, c.text_len);
        return true;
    }
    buf_reset(r->unescaped);
    if (!chunk_unescape(r->unescaped, c.text, c.text_len) || r->unescaped->failed)
        return false;
    reader_text(r, r->unescaped->data, r->unescaped->len);
    return true;
}

static bool is_done(const struct sse_event *ev)
{
    size_t n = ev->len;

    while (n > 0 && ev->data[n - 1] == ' ')
        n--;
    return n == 6 && memcmp(ev->data, "[DONE]", 6) == 0;
}

static void read_general_chunk(struct reader *r, const struct sse_event *ev)
{
    struct json_object *chunk = reader_parse(r, ev->data, ev->len);
    const char *error;
    struct chunk c;

    if (!chunk)
        return;
    error = outcome_error_text(chunk);
    if (error) {
        reader_fail(r, "provider_error", "the provider reported an error", error);
    } else {
        read_chunk(r, chunk);
        if (chunk_scan(ev->data, ev->len, &c) && c.citations)
            reader_keep_sources(r, c.citations, c.citations_len);
    }
    json_object_put(chunk);
}

static void read_event(struct reader *r, const struct sse_event *ev)
{
    if (is_done(ev)) {
        r->done = true;
        return;
    }
    if (ev->len == 0)
        return;
    r->events++;
    if (!read_text_chunk(r, ev))
        read_general_chunk(r, ev);
}

const struct dialect dialect_openai = {
    .name = "openai",
    .path = "/chat/completions",
    .put_request = put_request,
    .read_event = read_event,
};
