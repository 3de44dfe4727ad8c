/*
 * Token texts and OpenAI JSON of the mock provider. The shapes follow what api.openai.com
 * and Perplexity send, as far as a gateway looks at it.
 */
#include "tools/mock/render.h"

#include <inttypes.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/json.h"

#define TEXT_PIECE 4 /* bytes per token of a literal text */

/* Moves a cut back to the beginning of a character. */
static size_t char_start(const char *s, size_t n, size_t at)
{
    if (at >= n)
        return n;
    while (at > 0 && ((unsigned char)s[at] & 0xc0) == 0x80)
        at--;
    return at;
}

void answer_init(struct answer *a, const struct spec *s, const char *user, size_t n)
{
    unsigned char digest[SHA256_DIGEST_LENGTH];

    a->spec = s;
    a->prefix = BUF_INIT(1 << 20);
    a->tokens = s->tokens;
    a->tool_calls = s->tool_calls;
    SHA256((const unsigned char *)user, n, digest);
    bytes_hex(digest, 4, a->user_hash);
    if (spec_names(s, "tokens"))
        return;
    if (s->text) {
        size_t size = s->token_size ? s->token_size : TEXT_PIECE;

        a->tokens = (strlen(s->text) + size - 1) / size;
    } else if (s->tool_calls) {
        a->tokens = 0;
    }
}

void answer_free(struct answer *a)
{
    free(a->model);
    free(a->tool);
    buf_free(&a->prefix);
}

static void put_fill(struct buf *out, uint64_t n)
{
    char *p = n > 0 ? buf_reserve(out, n) : NULL;

    if (p) {
        memset(p, 'x', n);
        out->len += n;
    }
}

static void put_text_piece(const struct answer *a, uint64_t i, struct buf *out)
{
    const char *s = a->spec->text;
    size_t n = strlen(s), from, to;
    size_t size = a->spec->token_size ? a->spec->token_size : TEXT_PIECE;

    if (a->tokens != (n + size - 1) / size) {
        from = n * i / a->tokens;
        to = n * (i + 1) / a->tokens;
    } else {
        from = i * size;
        to = (i + 1) * size;
    }
    from = char_start(s, n, from);
    to = char_start(s, n, to);
    buf_append(out, s + from, to - from);
}

static void put_token(const struct answer *a, const char *kind, uint64_t i,
                      uint64_t count, struct buf *out)
{
    size_t start = out->len, size = a->spec->token_size;

    buf_printf(out, "%s-%s-%" PRIu64, kind, a->user_hash, i);
    if (a->spec->utf8)
        buf_puts(out,
                 "-\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80"); /* é, 漢, a smiling face */
    if (size == 0) {
        if (i + 1 < count)
            buf_putc(out, ' ');
    } else if (out->len - start < size) {
        put_fill(out, size - (out->len - start) - 1);
        buf_putc(out, ' ');
    } else {
        out->len = start + char_start(out->data + start, out->len - start, size);
    }
}

void answer_token(const struct answer *a, uint64_t i, struct buf *out)
{
    if (i == 0 && a->spec->huge_line)
        put_fill(out, a->spec->huge_line);
    else if (a->spec->text)
        put_text_piece(a, i, out);
    else
        put_token(a, "tok", i, a->tokens, out);
}

void answer_reasoning(const struct answer *a, uint64_t i, struct buf *out)
{
    put_token(a, "why", i, a->spec->reasoning, out);
}

uint64_t answer_completion_tokens(const struct answer *a)
{
    return a->tokens + a->spec->reasoning + (a->tool_calls ? RENDER_TOOL_PIECES : 0);
}

const char *answer_finish(const struct answer *a)
{
    if (a->spec->finish)
        return a->spec->finish;
    return a->tool_calls ? "tool_calls" : "stop";
}

static void put_string(struct buf *out, const char *s)
{
    json_put_string(out, s, strlen(s));
}

static void put_citations(const struct answer *a, struct buf *out)
{
    if (!a->spec->citations)
        return;
    buf_puts(out, "\"citations\":[");
    for (uint64_t i = 0; i < a->spec->citations; i++)
        buf_printf(out, "%s\"https://example.com/source/%" PRIu64 "\"", i ? "," : "",
                   i + 1);
    buf_puts(out, "],");
}

static void put_head(const struct answer *a, const char *object, uint64_t call_id,
                     struct buf *out)
{
    buf_printf(out,
               "{\"id\":\"chatcmpl-mock-%" PRIu64 "\",\"object\":\"%s\",\"created\":%lld,"
               "\"model\":",
               call_id, object, (long long)time(NULL));
    put_string(out, a->model);
    buf_putc(out, ',');
    put_citations(a, out);
}

void render_prefix(struct answer *a, uint64_t call_id)
{
    put_head(a, "chat.completion.chunk", call_id, &a->prefix);
    buf_puts(&a->prefix, "\"choices\":[");
}

static void open_delta(const struct answer *a, struct buf *out)
{
    buf_append(out, a->prefix.data, a->prefix.len);
    buf_puts(out, "{\"index\":0,\"delta\":{");
}

static void close_delta(struct buf *out)
{
    buf_puts(out, "},\"finish_reason\":null}]}");
}

void render_role(const struct answer *a, struct buf *out)
{
    open_delta(a, out);
    buf_puts(out, "\"role\":\"assistant\",\"content\":");
    buf_puts(out, a->spec->role == SPEC_ROLE_NULL ? "null" : "\"\"");
    close_delta(out);
}

void render_delta(const struct answer *a, const char *field, const char *text, size_t n,
                  struct buf *out)
{
    open_delta(a, out);
    buf_putc(out, '"');
    buf_puts(out, field);
    buf_puts(out, "\":");
    json_put_string(out, text, n);
    close_delta(out);
}

static const char *const tool_pieces[RENDER_TOOL_PIECES] = {"", "{\"place\":", "\"Bern\"",
                                                            "}"};

static void put_tool_head(const struct answer *a, struct buf *out)
{
    buf_printf(out, "\"id\":\"call_%s\",\"type\":\"function\",\"function\":{\"name\":",
               a->user_hash);
    put_string(out, a->tool ? a->tool : "get_weather");
    buf_puts(out, ",\"arguments\":");
}

void render_tool(const struct answer *a, uint64_t i, struct buf *out)
{
    open_delta(a, out);
    buf_puts(out, "\"tool_calls\":[{\"index\":0,");
    if (i == 0)
        put_tool_head(a, out);
    else
        buf_puts(out, "\"function\":{\"arguments\":");
    put_string(out, tool_pieces[i]);
    buf_puts(out, "}}]");
    close_delta(out);
}

void render_finish(const struct answer *a, struct buf *out)
{
    open_delta(a, out);
    buf_puts(out, "},\"finish_reason\":");
    put_string(out, answer_finish(a));
    buf_puts(out, "}]}");
}

static void put_usage(const struct answer *a, struct buf *out)
{
    uint64_t completion = answer_completion_tokens(a);

    buf_printf(out,
               "\"usage\":{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64
               ",\"total_tokens\":%" PRIu64 "}}",
               a->prompt_tokens, completion, a->prompt_tokens + completion);
}

void render_usage(const struct answer *a, struct buf *out)
{
    buf_append(out, a->prefix.data, a->prefix.len);
    buf_puts(out, "],");
    put_usage(a, out);
}

void render_completion(const struct answer *a, uint64_t call_id, struct buf *out)
{
    struct buf text = BUF_INIT(WIRE_OUT_MAX);

    put_head(a, "chat.completion", call_id, out);
    buf_puts(out, "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",");
    if (a->spec->reasoning) {
        for (uint64_t i = 0; i < a->spec->reasoning; i++)
            answer_reasoning(a, i, &text);
        buf_puts(out, "\"reasoning_content\":");
        json_put_string(out, text.data, text.len);
        buf_putc(out, ',');
        buf_reset(&text);
    }
    for (uint64_t i = 0; i < a->tokens; i++)
        answer_token(a, i, &text);
    buf_puts(out, "\"content\":");
    if (a->tokens == 0 && a->tool_calls)
        buf_puts(out, "null");
    else
        json_put_string(out, text.len ? text.data : "", text.len);
    if (a->tool_calls) {
        buf_puts(out, ",\"tool_calls\":[{");
        put_tool_head(a, out);
        buf_reset(&text);
        for (size_t i = 0; i < RENDER_TOOL_PIECES; i++)
            buf_puts(&text, tool_pieces[i]);
        json_put_string(out, text.data, text.len);
        buf_puts(out, "}}]");
    }
    buf_puts(out, "},\"finish_reason\":");
    put_string(out, answer_finish(a));
    buf_puts(out, "}],");
    put_usage(a, out);
    buf_free(&text);
}
