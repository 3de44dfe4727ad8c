/*
 * One pass over a JSON text with an explicit stack of open objects and arrays. Keys of
 * all open objects stand on one key stack; when an object closes, its keys are sorted and
 * neighbours compared, so that an object of 100,000 keys costs O(n log n) like any other.
 * Keys are compared as what they mean: those with escapes are decoded into an arena
 * first.
 *
 * Integers outside 64 bits are refused beyond what the header lists: json-c would
 * silently make two different ones equal. Any process.
 */
#include "base/json_check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX_BYTES 400

struct key {
    const char *s; /* into the text, or into the arena if it had escapes */
    size_t n;
    size_t offset; /* of its opening quote */
};

struct frame {
    bool object;
    bool has_key;     /* object: its newest key names the value being read */
    size_t index;     /* array: of the value being read */
    size_t first_key; /* object: where its keys begin on the key stack */
};

struct check {
    const char *text;
    size_t n;
    size_t at;
    struct json_error *err;
    struct frame stack[JSON_DEPTH_MAX];
    size_t depth;
    struct key *keys; /* owned */
    size_t key_count, key_cap;
    char *arena; /* owned; n bytes, made when first needed: decoding never lengthens */
    size_t arena_len;
};

/* --- errors ------------------------------------------------------------------------- */

/* Writes the path of the value being read, cut at a character. */
static void put_path(const struct check *c, char *out, size_t size)
{
    size_t len = 0;

    out[0] = '\0';
    for (size_t i = 0; i < c->depth && len < size - 1; i++) {
        const struct frame *f = &c->stack[i];
        const struct key *k;
        size_t next = i + 1;

        if (!f->object) {
            len += (size_t)snprintf(out + len, size - len, "[%zu]", f->index);
            continue;
        }
        if (!f->has_key)
            break;
        /* Its newest key is the one below the first of the next open object. */
        while (next < c->depth && !c->stack[next].object)
            next++;
        k = &c->keys[(next < c->depth ? c->stack[next].first_key : c->key_count) - 1];
        len += (size_t)snprintf(out + len, size - len, "%s%.*s", len > 0 ? "." : "",
                                (int)(k->n < size ? k->n : size), k->s);
    }
    if (len >= size)
        len = size - 1;
    out[utf8_complete_prefix(out, len)] = '\0';
}

static enum dac_err fail_at(struct check *c, size_t offset, const char *fmt, ...)
    DAC_PRINTF(3, 4);

static enum dac_err fail_at(struct check *c, size_t offset, const char *fmt, ...)
{
    va_list ap;

    c->err->offset = offset;
    va_start(ap, fmt);
    vsnprintf(c->err->message, sizeof(c->err->message), fmt, ap);
    va_end(ap);
    put_path(c, c->err->field, sizeof(c->err->field));
    return DAC_E_INVALID;
}

static enum dac_err fail_expected(struct check *c, const char *what)
{
    if (c->at >= c->n)
        return fail_at(c, c->n, "text ends where %s is expected", what);
    if (c->text[c->at] == '\0')
        return fail_at(c, c->at, "NUL byte");
    return fail_at(c, c->at, "expected %s", what);
}

/* --- keys --------------------------------------------------------------------------- */

static enum dac_err push_key(struct check *c, const struct key *k)
{
    if (c->key_count == c->key_cap) {
        size_t cap = c->key_cap ? c->key_cap * 2 : 32;
        struct key *p = realloc(c->keys, cap * sizeof(*p));

        if (!p)
            return DAC_E_NOMEM;
        c->keys = p;
        c->key_cap = cap;
    }
    c->keys[c->key_count++] = *k;
    return DAC_OK;
}

static int compare_text(const struct key *a, const struct key *b)
{
    if (a->n != b->n)
        return a->n < b->n ? -1 : 1;
    return a->n > 0 ? memcmp(a->s, b->s, a->n) : 0;
}

static int compare_keys(const void *va, const void *vb)
{
    const struct key *a = va, *b = vb;
    int r = compare_text(a, b);

    if (r != 0)
        return r;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* Closes the innermost object: refuses the first key that another one before it has. */
static enum dac_err close_object(struct check *c)
{
    struct frame *f = &c->stack[c->depth - 1];
    struct key *first = c->keys + f->first_key;
    const struct key *twice = NULL;
    size_t count = c->key_count - f->first_key;

    if (count > 1) {
        qsort(first, count, sizeof(*first), compare_keys);
        for (size_t i = 1; i < count; i++) {
            if (compare_text(&first[i - 1], &first[i]) == 0 &&
                (!twice || first[i].offset < twice->offset))
                twice = &first[i];
        }
    }
    if (twice) {
        struct key k = *twice;

        c->key_count = f->first_key + 1;
        *first = k;
        f->has_key = true;
        return fail_at(c, k.offset, "duplicate key");
    }
    c->key_count = f->first_key;
    c->depth--;
    return DAC_OK;
}

/* --- strings ------------------------------------------------------------------------ */

/* Reads four hexadecimal digits at `at`; -1 if they are not there. */
static long hex4(const struct check *c, size_t at)
{
    long v = 0;

    if (c->n - at < 4 || at > c->n)
        return -1;
    for (size_t i = at; i < at + 4; i++) {
        char h = c->text[i];

        if (h >= '0' && h <= '9')
            v = v * 16 + (h - '0');
        else if ((h | 0x20) >= 'a' && (h | 0x20) <= 'f')
            v = v * 16 + ((h | 0x20) - 'a' + 10);
        else
            return -1;
    }
    return v;
}

static size_t put_utf8(char *out, unsigned long u)
{
    if (u < 0x80) {
        out[0] = (char)u;
        return 1;
    }
    if (u < 0x800) {
        out[0] = (char)(0xc0 | u >> 6);
        out[1] = (char)(0x80 | (u & 0x3f));
        return 2;
    }
    if (u < 0x10000) {
        out[0] = (char)(0xe0 | u >> 12);
        out[1] = (char)(0x80 | (u >> 6 & 0x3f));
        out[2] = (char)(0x80 | (u & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | u >> 18);
    out[1] = (char)(0x80 | (u >> 12 & 0x3f));
    out[2] = (char)(0x80 | (u >> 6 & 0x3f));
    out[3] = (char)(0x80 | (u & 0x3f));
    return 4;
}

/* Checks the \u escape at c->at and moves behind it. */
static enum dac_err check_unicode(struct check *c, unsigned long *out)
{
    size_t start = c->at;
    long high = hex4(c, start + 2), low;

    if (high < 0)
        return fail_at(c, start, "\\u is not followed by four hexadecimal digits");
    if (high == 0)
        return fail_at(c, start, "\\u0000 is not allowed");
    c->at = start + 6;
    *out = (unsigned long)high;
    if (high < 0xd800 || high > 0xdfff)
        return DAC_OK;
    if (high > 0xdbff || c->n - c->at < 6 || c->text[c->at] != '\\' ||
        c->text[c->at + 1] != 'u')
        return fail_at(c, start, "lone surrogate");
    low = hex4(c, c->at + 2);
    if (low < 0xdc00 || low > 0xdfff)
        return fail_at(c, start, "lone surrogate");
    c->at += 6;
    *out =
        0x10000 + ((unsigned long)(high - 0xd800) << 10) + (unsigned long)(low - 0xdc00);
    return DAC_OK;
}

/* Checks the escape at c->at, moves behind it, and gives the character it means. */
static enum dac_err check_escape(struct check *c, unsigned long *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *which;

    if (c->n - c->at < 2)
        return fail_at(c, c->n, "text ends inside a string");
    if (c->text[c->at + 1] == 'u')
        return check_unicode(c, out);
    which = c->text[c->at + 1] ? strchr(from, c->text[c->at + 1]) : NULL;
    if (!which)
        return fail_at(c, c->at, "unknown escape in a string");
    *out = (unsigned char)to[which - from];
    c->at += 2;
    return DAC_OK;
}

/* Moves over characters that stand for themselves. */
static enum dac_err check_plain(struct check *c, bool *end)
{
    *end = false;
    while (c->at < c->n) {
        unsigned char ch = (unsigned char)c->text[c->at];
        size_t len = 1;

        if (ch == '"' || ch == '\\') {
            *end = ch == '"';
            return DAC_OK;
        }
        if (ch == 0)
            return fail_at(c, c->at, "NUL byte");
        if (ch < 0x20)
            return fail_at(c, c->at, "control character in a string");
        if (ch >= 0x80) {
            len = ch < 0xe0 ? 2 : ch < 0xf0 ? 3 : 4;
            if (c->n - c->at < len || !utf8_valid(c->text + c->at, len))
                return fail_at(c, c->at, "invalid UTF-8");
        }
        c->at += len;
    }
    return fail_at(c, c->n, "text ends inside a string");
}

/* Checks the string at c->at. With `key`, also gives what it means. */
static enum dac_err check_string(struct check *c, struct key *key)
{
    size_t from = c->at + 1;
    char *decoded = NULL;
    size_t len = 0;
    bool end;

    if (key)
        key->offset = c->at;
    c->at = from;
    for (;;) {
        unsigned long u = 0;
        enum dac_err rc = check_plain(c, &end);

        if (rc != DAC_OK)
            return rc;
        if (key && (decoded || !end)) {
            if (!c->arena && !(c->arena = malloc(c->n)))
                return DAC_E_NOMEM;
            decoded = c->arena + c->arena_len;
            memcpy(decoded + len, c->text + from, c->at - from);
            len += c->at - from;
        }
        if (end)
            break;
        rc = check_escape(c, &u);
        if (rc != DAC_OK)
            return rc;
        if (decoded)
            len += put_utf8(decoded + len, u);
        from = c->at;
    }
    if (key) {
        key->s = decoded ? decoded : c->text + from;
        key->n = decoded ? len : c->at - from;
        c->arena_len += len;
    }
    c->at++;
    return DAC_OK;
}

/* --- numbers and words -------------------------------------------------------------- */

static size_t skip_digits(struct check *c)
{
    size_t from = c->at;

    while (c->at < c->n && c->text[c->at] >= '0' && c->text[c->at] <= '9')
        c->at++;
    return c->at - from;
}

/* Whether the digits fit what json-c holds: int64 for negative, uint64 for other
 * integers. */
static bool integer_fits(const char *s, size_t n)
{
    uint64_t v;

    if (s[0] == '-')
        return bytes_parse_u64(s + 1, n - 1, (uint64_t)INT64_MAX + 1, &v);
    return bytes_parse_u64(s, n, UINT64_MAX, &v);
}

static enum dac_err check_range(struct check *c, size_t from, bool integer)
{
    size_t n = c->at - from;
    char copy[NUMBER_MAX_BYTES + 1];

    if (n > NUMBER_MAX_BYTES)
        return fail_at(c, from, "number is too long");
    if (integer) {
        if (!integer_fits(c->text + from, n))
            return fail_at(c, from, "integer is out of range");
        return DAC_OK;
    }
    memcpy(copy, c->text + from, n);
    copy[n] = '\0';
    if (!isfinite(strtod(copy, NULL)))
        return fail_at(c, from, "number is out of range");
    return DAC_OK;
}

static enum dac_err check_number(struct check *c)
{
    size_t from = c->at;
    bool integer = true;

    if (c->text[c->at] == '-')
        c->at++;
    if (c->at < c->n && c->text[c->at] == '0') {
        c->at++;
        if (c->at < c->n && c->text[c->at] >= '0' && c->text[c->at] <= '9')
            return fail_at(c, from, "number has a leading zero");
    } else if (skip_digits(c) == 0) {
        return fail_expected(c, "a digit");
    }
    if (c->at < c->n && c->text[c->at] == '.') {
        integer = false;
        c->at++;
        if (skip_digits(c) == 0)
            return fail_expected(c, "a digit");
    }
    if (c->at < c->n && (c->text[c->at] | 0x20) == 'e') {
        integer = false;
        c->at++;
        if (c->at < c->n && (c->text[c->at] == '+' || c->text[c->at] == '-'))
            c->at++;
        if (skip_digits(c) == 0)
            return fail_expected(c, "a digit");
    }
    return check_range(c, from, integer);
}

static enum dac_err check_word(struct check *c)
{
    static const char *const words[] = {"true", "false", "null"};

    for (size_t i = 0; i < DAC_ARRAY_LEN(words); i++) {
        size_t len = strlen(words[i]);

        if (c->n - c->at >= len && memcmp(c->text + c->at, words[i], len) == 0) {
            c->at += len;
            return DAC_OK;
        }
    }
    return fail_expected(c, "a value");
}

/* --- structure ---------------------------------------------------------------------- */

static void skip_blanks(struct check *c)
{
    while (c->at < c->n && (c->text[c->at] == ' ' || c->text[c->at] == '\t' ||
                            c->text[c->at] == '\n' || c->text[c->at] == '\r'))
        c->at++;
}

static bool next_is(struct check *c, char ch)
{
    skip_blanks(c);
    return c->at < c->n && c->text[c->at] == ch;
}

static enum dac_err open_level(struct check *c, bool object)
{
    if (c->depth == JSON_DEPTH_MAX)
        return fail_at(c, c->at, "nested deeper than %d levels", JSON_DEPTH_MAX);
    c->stack[c->depth++] = (struct frame){.object = object, .first_key = c->key_count};
    c->at++;
    return DAC_OK;
}

/* Reads `"key" :`. */
static enum dac_err check_key(struct check *c)
{
    struct frame *f = &c->stack[c->depth - 1];
    struct key key = {0};
    enum dac_err rc;

    f->has_key = false;
    if (!next_is(c, '"'))
        return fail_expected(c, "a key in double quotes");
    rc = check_string(c, &key);
    if (rc == DAC_OK)
        rc = push_key(c, &key);
    if (rc != DAC_OK)
        return rc;
    f->has_key = true;
    if (!next_is(c, ':'))
        return fail_expected(c, "':'");
    c->at++;
    return DAC_OK;
}

/* Reads a value up to where it ends or, if it is an object or array, its first member
 * begins; `opened` says so. An empty one counts as read. */
static enum dac_err check_value(struct check *c, bool *opened)
{
    char ch;
    enum dac_err rc;

    *opened = false;
    skip_blanks(c);
    if (c->at >= c->n)
        return fail_expected(c, "a value");
    ch = c->text[c->at];
    if (ch == '"')
        return check_string(c, NULL);
    if (ch == '-' || (ch >= '0' && ch <= '9'))
        return check_number(c);
    if (ch != '{' && ch != '[')
        return check_word(c);

    rc = open_level(c, ch == '{');
    if (rc != DAC_OK)
        return rc;
    if (next_is(c, ch == '{' ? '}' : ']')) {
        c->at++;
        c->depth--;
        return DAC_OK;
    }
    *opened = true;
    return ch == '{' ? check_key(c) : DAC_OK;
}

/* Behind a value: closes what ends here, or moves to the next member. */
static enum dac_err check_next(struct check *c)
{
    while (c->depth > 0) {
        struct frame *f = &c->stack[c->depth - 1];

        if (next_is(c, ',')) {
            c->at++;
            f->index++;
            return f->object ? check_key(c) : DAC_OK;
        }
        if (!next_is(c, f->object ? '}' : ']'))
            return fail_expected(c, f->object ? "',' or '}'" : "',' or ']'");
        if (f->object) {
            enum dac_err rc = close_object(c);

            if (rc != DAC_OK)
                return rc;
        } else {
            c->depth--;
        }
        c->at++;
    }
    return DAC_OK;
}

enum dac_err json_check(const char *text, size_t n, struct json_error *err)
{
    struct check c = {.text = text, .n = n, .err = err};
    enum dac_err rc;
    bool opened;

    do {
        rc = check_value(&c, &opened);
        if (rc == DAC_OK && !opened)
            rc = check_next(&c);
    } while (rc == DAC_OK && c.depth > 0);

    if (rc == DAC_OK) {
        skip_blanks(&c);
        if (c.at < n)
            rc = fail_at(&c, c.at, "bytes behind the value");
    }
    free(c.keys);
    free(c.arena);
    return rc;
}
