/*
 * libFuzzer target of the decoder of server-sent events and of the dialect "openai"
 * behind it. The first byte of the input says how the rest is split. Each input is
 * decoded whole and in parts, and both must give the same events. Each event then goes to
 * the dialect, and all text that comes out must be storable.
 *
 *   clang -std=c17 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -Isrc -I. \
 *       tests/fuzz/fuzz_sse_decoder.c src/upstream/sse_decoder.c src/upstream/reader.c \
 *       src/upstream/openai.c src/upstream/chunk.c src/upstream/outcome.c \
 *       src/base/[a-z]*.c -ljson-c -lcurl
 */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "upstream/chunk.h"
#include "upstream/dialect.h"

#define EVENT_MAX 4096

struct sum {
    uint64_t digest;
    size_t events;
    struct reader *reader; /* NULL: only the sum */
};

static void require(int ok)
{
    if (!ok)
        abort();
}

static void mix(struct sum *s, const void *data, size_t n)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < n; i++)
        s->digest = (s->digest ^ p[i]) * 1099511628211u;
    s->digest = (s->digest ^ n) * 1099511628211u;
}

static struct json_object *get(struct json_object *o, const char *name)
{
    struct json_object *v = NULL;

    if (json_object_is_type(o, json_type_object))
        json_object_object_get_ex(o, name, &v);
    return v;
}

/* What the quick way takes must be what json-c finds. */
static void compare_ways(const struct sse_event *ev)
{
    struct json_tokener *t;
    struct json_object *o;
    struct json_object *text;
    struct chunk c;
    struct buf plain = BUF_INIT(1 << 16);

    if (!chunk_scan(ev->data, ev->len, &c) ||
        !chunk_unescape(&plain, c.text, c.text_len)) {
        buf_free(&plain);
        return;
    }
    t = json_tokener_new_ex(JSON_DEPTH_MAX);
    json_tokener_set_flags(t, JSON_TOKENER_STRICT);
    o = json_tokener_parse_ex(t, ev->data, (int)ev->len);
    require(o && json_tokener_get_error(t) == json_tokener_success);
    require(!get(o, "error") && json_object_array_length(get(o, "choices")) == 1);
    text = json_object_array_get_idx(get(o, "choices"), 0);
    require(!get(text, "finish_reason"));
    text = get(get(text, "delta"), "content");
    require(json_object_is_type(text, json_type_string));
    require((size_t)json_object_get_string_len(text) == plain.len);
    require(plain.len == 0 ||
            memcmp(json_object_get_string(text), plain.data, plain.len) == 0);
    json_object_put(o);
    json_tokener_free(t);
    buf_free(&plain);
}

static bool on_event(void *arg, const struct sse_event *ev)
{
    struct sum *s = arg;

    mix(s, ev->name, strlen(ev->name));
    mix(s, ev->data, ev->len);
    s->events++;
    if (s->reader)
        compare_ways(ev);
    if (s->reader && reader_open(s->reader))
        dialect_openai.read_event(s->reader, ev);
    return true;
}

static void on_text(void *arg, const char *p, size_t n)
{
    (void)arg;
    require(n > 0 && !memchr(p, '\0', n) && utf8_valid(p, n));
}

static const struct upstream_ops ops = {.on_text = on_text,
                                        .on_reasoning = on_text,
                                        .on_tool = on_text,
                                        .on_citations = on_text};

static enum dac_err decode(const char *p, size_t n, size_t piece, struct sum *s)
{
    struct sse_decoder d;
    enum dac_err e = DAC_OK;

    sse_decoder_init(&d, EVENT_MAX);
    for (size_t at = 0; at < n && e == DAC_OK; at += piece)
        e = sse_decoder_feed(&d, p + at, n - at < piece ? n - at : piece, on_event, s);
    sse_decoder_free(&d);
    return e;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf scratch = BUF_INIT(1 << 20);
    struct buf unescaped = BUF_INIT(1 << 20);
    struct reader r = {
        .ops = &ops, .key = "sk-12345678", .scratch = &scratch, .unescaped = &unescaped};
    struct sum whole = {.reader = &r};
    struct sum parts = {.reader = NULL};
    struct upstream_end end;
    enum dac_err e;

    if (size < 1)
        return 0;
    const char *p = (const char *)data + 1;
    e = decode(p, size - 1, size, &whole);
    if (e == DAC_OK && decode(p, size - 1, 1 + data[0] % 32, &parts) == DAC_OK)
        require(whole.digest == parts.digest && whole.events == parts.events);
    reader_outcome(&r, data[0] & 1, &end);
    require(utf8_valid(end.message, strlen(end.message)));
    reader_reset(&r);
    buf_free(&scratch);
    buf_free(&unescaped);
    return 0;
}
