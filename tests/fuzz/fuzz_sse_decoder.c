/*
 * libFuzzer target of the decoder of server-sent events and of the dialect "openai"
 * behind it. The first byte of the input says how the rest is split. Each input is
 * decoded whole and in parts, and both must give the same events. Each event then goes to
 * the dialect, and all text that comes out must be storable.
 *
 *   clang -std=c17 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -Isrc -I. \
 *       tests/fuzz/fuzz_sse_decoder.c src/upstream/sse_decoder.c src/upstream/reader.c \
 *       src/upstream/openai.c src/upstream/outcome.c src/base/[a-z]*.c -ljson-c -lcurl
 */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
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

static bool on_event(void *arg, const struct sse_event *ev)
{
    struct sum *s = arg;

    mix(s, ev->name, strlen(ev->name));
    mix(s, ev->data, ev->len);
    s->events++;
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
    struct reader r = {.ops = &ops, .key = "sk-12345678", .scratch = &scratch};
    struct sum whole = {.reader = &r};
    struct sum parts = {.reader = NULL};
    struct upstream_end end;
    enum dac_err e;

    if (size < 1)
        return 0;
    r.tokener = json_tokener_new_ex(JSON_DEPTH_MAX);
    require(r.tokener != NULL);
    json_tokener_set_flags(r.tokener, JSON_TOKENER_STRICT);
    const char *p = (const char *)data + 1;
    e = decode(p, size - 1, size, &whole);
    if (e == DAC_OK && decode(p, size - 1, 1 + data[0] % 32, &parts) == DAC_OK)
        require(whole.digest == parts.digest && whole.events == parts.events);
    reader_outcome(&r, data[0] & 1, &end);
    require(utf8_valid(end.message, strlen(end.message)));
    struct json_tokener *t = r.tokener;
    reader_reset(&r);
    json_tokener_free(t);
    buf_free(&scratch);
    return 0;
}
