/*
 * A recursive reader of JSON; depth is bounded by JSON_DEPTH_MAX. Keys of the objects
 * that are open stand one behind the other in one buffer, text with escapes in another.
 * Any process.
 */
#include "base/json_build.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX_BYTES 400
#define REPLACEMENT      0xfffdUL

struct build {
    const char *p;
    const char *end;
    int depth;
    struct buf keys; /* each with its NUL */
    struct buf text; /* one string without its escapes */
};

static enum dac_err build_value(struct build *b, struct json_object **out);

static void skip_blanks(struct build *b)
{
    while (b->p < b->end &&
           (*b->p == ' ' || *b->p == '\t' || *b->p == '\n' || *b->p == '\r'))
        b->p++;
}

static bool take(struct build *b, char c)
{
    skip_blanks(b);
    if (b->p == b->end || *b->p != c)
        return false;
    b->p++;
    return true;
}

/* --- strings ------------------------------------------------------------------------ */

/* Four hexadecimal digits at p, or -1. */
static long hex4(const struct build *b, const char *p)
{
    static const char digits[] = "0123456789abcdef";
    long v = 0;

    if (b->end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        const char *d = p[i] ? strchr(digits, p[i] | (p[i] >= 'A' ? 0x20 : 0)) : NULL;
        if (!d)
            return -1;
        v = v * 16 + (d - digits);
    }
    return v;
}

static void put_utf8(struct buf *to, unsigned long u)
{
    char c[4];
    size_t n = u < 0x80 ? 1 : u < 0x800 ? 2 : u < 0x10000 ? 3 : 4;

    for (size_t i = n; i-- > 1; u >>= 6)
        c[i] = (char)(0x80 | (u & 0x3f));
    c[0] = n == 1 ? (char)u : (char)((0xf00UL >> n & 0xf0) | u);
    buf_append(to, c, n);
}

/* Behind a \u. */
static bool take_unicode(struct build *b, struct buf *to)
{
    long u = hex4(b, b->p);
    long low;

    if (u < 0)
        return false;
    b->p += 4;
    if (u >= 0xd800 && u <= 0xdbff && b->end - b->p >= 6 && b->p[0] == '\\' &&
        b->p[1] == 'u' && (low = hex4(b, b->p + 2)) >= 0xdc00 && low <= 0xdfff) {
        b->p += 6;
        put_utf8(to, 0x10000UL + ((unsigned long)(u - 0xd800) << 10) +
                         (unsigned long)(low - 0xdc00));
        return true;
    }
    put_utf8(to, u >= 0xd800 && u <= 0xdfff ? REPLACEMENT : (unsigned long)u);
    return true;
}

/* Behind a backslash. */
static bool take_escape(struct build *b, struct buf *to)
{
    static const char from[] = "\"\\/bfnrt";
    static const char means[] = "\"\\/\b\f\n\r\t";
    const char *known;

    if (b->p == b->end || !*b->p)
        return false;
    if (*b->p == 'u') {
        b->p++;
        return take_unicode(b, to);
    }
    known = strchr(from, *b->p++);
    if (known)
        buf_putc(to, means[known - from]);
    return known != NULL;
}

/* Behind the opening quote: where the string ends or its first escape is. */
static const char *plain_end(const struct build *b)
{
    const char *p = b->p;

    while (p < b->end && *p != '"' && *p != '\\')
        p++;
    return p;
}

/* Behind the opening quote, up to and with the closing one; appends what it means. */
static enum dac_err decode_string(struct build *b, struct buf *to)
{
    for (;;) {
        const char *p = plain_end(b);

        buf_append(to, b->p, (size_t)(p - b->p));
        b->p = p;
        if (p == b->end)
            return DAC_E_INVALID;
        b->p++;
        if (*p == '"')
            return to->failed ? DAC_E_NOMEM : DAC_OK;
        if (!take_escape(b, to))
            return DAC_E_INVALID;
    }
}

static enum dac_err build_string(struct build *b, struct json_object **out)
{
    const char *p = plain_end(b);
    enum dac_err e;

    if (p < b->end && *p == '"') {
        *out = json_object_new_string_len(b->p, (int)(p - b->p));
        b->p = p + 1;
        return *out ? DAC_OK : DAC_E_NOMEM;
    }
    buf_reset(&b->text);
    e = decode_string(b, &b->text);
    if (e == DAC_OK)
        *out = json_object_new_string_len(b->text.data ? b->text.data : "",
                                          (int)b->text.len);
    return e == DAC_OK && !*out ? DAC_E_NOMEM : e;
}

/* --- numbers and words -------------------------------------------------------------- */

static bool skip_digits(struct build *b)
{
    const char *start = b->p;

    while (b->p < b->end && *b->p >= '0' && *b->p <= '9')
        b->p++;
    return b->p > start;
}

static bool skip_number(struct build *b, bool *integer)
{
    *integer = true;
    if (*b->p == '-')
        b->p++;
    if (b->p < b->end && *b->p == '0')
        b->p++;
    else if (!skip_digits(b))
        return false;
    if (b->p < b->end && *b->p == '.') {
        *integer = false;
        b->p++;
        if (!skip_digits(b))
            return false;
    }
    if (b->p < b->end && (*b->p | 0x20) == 'e') {
        *integer = false;
        b->p++;
        if (b->p < b->end && (*b->p == '+' || *b->p == '-'))
            b->p++;
        if (!skip_digits(b))
            return false;
    }
    return true;
}

static struct json_object *new_integer(const char *s, size_t n, bool *fits)
{
    bool minus = s[0] == '-';
    uint64_t v;

    *fits = minus ? bytes_parse_u64(s + 1, n - 1, (uint64_t)INT64_MAX + 1, &v)
                  : bytes_parse_u64(s, n, UINT64_MAX, &v);
    if (!*fits)
        return NULL;
    if (minus)
        return json_object_new_int64((int64_t)(0 - v));
    return v <= INT64_MAX ? json_object_new_int64((int64_t)v) : json_object_new_uint64(v);
}

static enum dac_err build_number(struct build *b, struct json_object **out)
{
    char text[NUMBER_MAX_BYTES + 1];
    const char *start = b->p;
    bool integer, fits = false;

    if (!skip_number(b, &integer) || b->p - start > NUMBER_MAX_BYTES)
        return DAC_E_INVALID;
    size_t n = (size_t)(b->p - start);
    memcpy(text, start, n);
    text[n] = '\0';
    if (integer)
        *out = new_integer(text, n, &fits);
    if (!fits) {
        double d = strtod(text, NULL);
        if (!isfinite(d))
            return DAC_E_INVALID;
        *out = json_object_new_double_s(d, text);
    }
    return *out ? DAC_OK : DAC_E_NOMEM;
}

static bool take_word(struct build *b, const char *word)
{
    size_t n = strlen(word);

    if ((size_t)(b->end - b->p) < n || memcmp(b->p, word, n) != 0)
        return false;
    b->p += n;
    return true;
}

static enum dac_err build_word(struct build *b, struct json_object **out)
{
    bool yes = take_word(b, "true");

    if (!yes && take_word(b, "null"))
        return DAC_OK;
    if (!yes && !take_word(b, "false"))
        return DAC_E_INVALID;
    *out = json_object_new_boolean(yes);
    return *out ? DAC_OK : DAC_E_NOMEM;
}

/* --- structure ---------------------------------------------------------------------- */

static enum dac_err build_member(struct build *b, struct json_object *to)
{
    size_t at = b->keys.len;
    struct json_object *value = NULL;
    enum dac_err e;

    if (!take(b, '"'))
        return DAC_E_INVALID;
    e = decode_string(b, &b->keys);
    if (e == DAC_OK && buf_putc(&b->keys, '\0') != DAC_OK)
        e = DAC_E_NOMEM;
    if (e == DAC_OK && !take(b, ':'))
        e = DAC_E_INVALID;
    if (e == DAC_OK)
        e = build_value(b, &value);
    if (e == DAC_OK && json_object_object_add(to, b->keys.data + at, value) != 0) {
        json_object_put(value);
        e = DAC_E_NOMEM;
    }
    b->keys.len = at;
    return e;
}

static enum dac_err build_element(struct build *b, struct json_object *to)
{
    struct json_object *value = NULL;
    enum dac_err e = build_value(b, &value);

    if (e == DAC_OK && json_object_array_add(to, value) != 0) {
        json_object_put(value);
        e = DAC_E_NOMEM;
    }
    return e;
}

/* Behind the opening bracket. */
static enum dac_err build_container(struct build *b, bool object,
                                    struct json_object **out)
{
    char close = object ? '}' : ']';
    enum dac_err e = DAC_OK;

    if (++b->depth > JSON_DEPTH_MAX)
        return DAC_E_INVALID;
    *out = object ? json_object_new_object() : json_object_new_array();
    if (!*out)
        return DAC_E_NOMEM;
    if (!take(b, close)) {
        do
            e = object ? build_member(b, *out) : build_element(b, *out);
        while (e == DAC_OK && take(b, ','));
        if (e == DAC_OK && !take(b, close))
            e = DAC_E_INVALID;
    }
    b->depth--;
    if (e != DAC_OK) {
        json_object_put(*out);
        *out = NULL;
    }
    return e;
}

static enum dac_err build_value(struct build *b, struct json_object **out)
{
    *out = NULL;
    skip_blanks(b);
    if (b->p == b->end)
        return DAC_E_INVALID;
    switch (*b->p) {
    case '{':
    case '[':
        return build_container(b, *b->p++ == '{', out);
    case '"':
        b->p++;
        return build_string(b, out);
    case 't':
    case 'f':
    case 'n':
        return build_word(b, out);
    default:
        return build_number(b, out);
    }
}

enum dac_err json_build(const char *text, size_t n, struct json_object **out, size_t *at)
{
    struct build b = {.p = text,
                      .end = text + n,
                      .keys = BUF_INIT(n + JSON_DEPTH_MAX),
                      .text = BUF_INIT(n)};
    enum dac_err e = build_value(&b, out);

    if (e == DAC_OK) {
        skip_blanks(&b);
        if (b.p != b.end) {
            json_object_put(*out);
            *out = NULL;
            e = DAC_E_INVALID;
        }
    }
    *at = (size_t)(b.p - text);
    buf_free(&b.keys);
    buf_free(&b.text);
    return e;
}
