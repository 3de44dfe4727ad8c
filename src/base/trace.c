/*
 * traceparent is "VERSION-TRACEID-PARENTID-FLAGS", lower-case hex of 1, 16, 8 and 1
 * bytes. Version 00 ends there; of a higher one the same four fields are read, and
 * whatever follows a further dash is left alone; ff is no version.
 */
#include "base/trace.h"

#include <stddef.h>
#include <string.h>

#include "base/bytes.h"
#include "base/ids.h"

#define SPAN_SIZE 8

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads `n` bytes; stops at the end of the string, which is no digit. */
static bool read_hex(const char *s, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int high = hex_value(s[2 * i]);
        int low = high < 0 ? -1 : hex_value(s[2 * i + 1]);

        if (low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool is_zero(const uint8_t *p, size_t n)
{
    static const uint8_t zero[16];

    return memcmp(p, zero, n) == 0;
}

bool trace_parse(const char *value, struct trace *out)
{
    uint8_t version, flags, parent[SPAN_SIZE];
    struct trace t;

    *out = (struct trace){0};
    if (!value || !read_hex(value, &version, 1) || value[2] != '-' ||
        !read_hex(value + 3, t.id, sizeof(t.id)) || value[35] != '-' ||
        !read_hex(value + 36, parent, sizeof(parent)) || value[52] != '-' ||
        !read_hex(value + 53, &flags, 1))
        return false;
    char behind = value[TRACE_PARENT_LEN];
    if (version == 0xff || (behind != '\0' && (version == 0 || behind != '-')) ||
        is_zero(t.id, sizeof(t.id)) || is_zero(parent, sizeof(parent)))
        return false;
    t.flags = flags & TRACE_SAMPLED;
    *out = t;
    return true;
}

bool trace_given(const struct trace *t)
{
    return !is_zero(t->id, sizeof(t->id));
}

/* All zero is random, too, but means none. */
static void random_id(uint8_t *p, size_t n)
{
    do
        random_bytes(p, n);
    while (is_zero(p, n));
}

struct trace trace_new(void)
{
    struct trace t = {0};

    random_id(t.id, sizeof(t.id));
    return t;
}

void trace_format_id(const struct trace *t, char out[TRACE_ID_TEXT_SIZE])
{
    out[0] = '\0';
    if (trace_given(t))
        bytes_hex(t->id, sizeof(t->id), out);
}

void trace_format_parent(const struct trace *t, char out[TRACE_PARENT_SIZE])
{
    uint8_t span[SPAN_SIZE];

    random_id(span, sizeof(span));
    memcpy(out, "00-", 3);
    bytes_hex(t->id, sizeof(t->id), out + 3);
    out[35] = '-';
    bytes_hex(span, sizeof(span), out + 36);
    out[52] = '-';
    bytes_hex(&t->flags, 1, out + 53);
}
