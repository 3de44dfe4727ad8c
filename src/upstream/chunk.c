/*
 * A scanner of JSON by recursive descent, one pass, no allocation. It is strict where
 * json-c is lenient: in doubt it says no, and the general way is taken. Worker process.
 */
#include "upstream/chunk.h"

#include <string.h>

#define DEPTH_MAX 32

struct scan {
    const char *p;
    const char *end;
    int depth;
    bool choices, delta, content; /* seen: a second one is for the general way */
    struct chunk *out;
};

struct text {
    const char *p;
    size_t n;
    bool escaped;
};

/* What to do with the value of a member. False: the general way. */
typedef bool (*member_fn)(struct scan *s, const struct text *name);

static bool skip_value(struct scan *s);

static void skip_blanks(struct scan *s)
{
    while (s->p < s->end &&
           (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r'))
        s->p++;
}

static bool take(struct scan *s, char c)
{
    skip_blanks(s);
    if (s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

/* The character of the value that comes, or NUL. */
static char coming(struct scan *s)
{
    skip_blanks(s);
    return s->p < s->end ? *s->p : '\0';
}

static bool skip_escape(struct scan *s)
{
    s->p++;
    if (s->p == s->end)
        return false;
    if (*s->p == 'u') {
        for (int i = 0; i < 4; i++) {
            s->p++;
            if (s->p == s->end || !strchr("0123456789abcdefABCDEF", *s->p) || !*s->p)
                return false;
        }
    } else if (!*s->p || !strchr("\"\\/bfnrt", *s->p)) {
        return false;
    }
    s->p++;
    return true;
}

static bool read_string(struct scan *s, struct text *out)
{
    if (!take(s, '"'))
        return false;
    *out = (struct text){.p = s->p};
    while (s->p < s->end && *s->p != '"') {
        if ((unsigned char)*s->p < ' ')
            return false;
        if (*s->p == '\\') {
            out->escaped = true;
            if (!skip_escape(s))
                return false;
        } else {
            s->p++;
        }
    }
    out->n = (size_t)(s->p - out->p);
    return take(s, '"');
}

static bool skip_digits(struct scan *s)
{
    const char *start = s->p;

    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    return s->p > start;
}

static bool skip_number(struct scan *s)
{
    if (*s->p == '-')
        s->p++;
    if (s->p < s->end && *s->p == '0')
        s->p++;
    else if (!skip_digits(s))
        return false;
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if (!skip_digits(s))
            return false;
    }
    if (s->p < s->end && (*s->p == 'e' || *s->p == 'E')) {
        s->p++;
        if (s->p < s->end && (*s->p == '+' || *s->p == '-'))
            s->p++;
        if (!skip_digits(s))
            return false;
    }
    return true;
}

static bool skip_word(struct scan *s, const char *word)
{
    size_t n = strlen(word);

    if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n) != 0)
        return false;
    s->p += n;
    return true;
}

static bool read_object(struct scan *s, member_fn member)
{
    struct text name;
    bool ok = true;

    if (!take(s, '{') || ++s->depth > DEPTH_MAX)
        return false;
    if (!take(s, '}')) {
        do
            ok = read_string(s, &name) && !name.escaped && take(s, ':') &&
                 member(s, &name);
        while (ok && take(s, ','));
        ok = ok && take(s, '}');
    }
    s->depth--;
    return ok;
}

static bool skip_member(struct scan *s, const struct text *name)
{
    (void)name;
    return skip_value(s);
}

static bool skip_array(struct scan *s)
{
    bool ok = true;

    if (!take(s, '[') || ++s->depth > DEPTH_MAX)
        return false;
    if (!take(s, ']')) {
        do
            ok = skip_value(s);
        while (ok && take(s, ','));
        ok = ok && take(s, ']');
    }
    s->depth--;
    return ok;
}

static bool skip_value(struct scan *s)
{
    struct text t;

    switch (coming(s)) {
    case '{':
        return read_object(s, skip_member);
    case '[':
        return skip_array(s);
    case '"':
        return read_string(s, &t);
    case 't':
        return skip_word(s, "true");
    case 'f':
        return skip_word(s, "false");
    case 'n':
        return skip_word(s, "null");
    case '\0':
        return false;
    default:
        return skip_number(s);
    }
}

static bool is(const struct text *name, const char *word)
{
    return name->n == strlen(word) && memcmp(name->p, word, name->n) == 0;
}

static bool is_any(const struct text *name, const char *const *words)
{
    for (; *words; words++)
        if (is(name, *words))
            return true;
    return false;
}

/* --- a chunk --------------------------------------------------------------------------
 */

static bool delta_member(struct scan *s, const struct text *name)
{
    static const char *const others[] = {"reasoning_content", "reasoning", "refusal",
                                         "tool_calls", NULL};
    struct text t;

    if (is(name, "content")) {
        if (s->content)
            return false;
        s->content = true;
        if (coming(s) == 'n')
            return skip_word(s, "null");
        if (!read_string(s, &t))
            return false;
        s->out->text = t.p;
        s->out->text_len = t.n;
        s->out->escaped = t.escaped;
        return true;
    }
    if (coming(s) == 'n')
        return skip_word(s, "null");
    return !is_any(name, others) && skip_value(s);
}

static bool choice_member(struct scan *s, const struct text *name)
{
    static const char *const others[] = {"finish_reason", NULL};

    if (is(name, "index")) {
        if (coming(s) != '0')
            return false;
        return skip_number(s) && s->p[-1] == '0';
    }
    if (is(name, "delta")) {
        if (s->delta)
            return false;
        s->delta = true;
        return read_object(s, delta_member);
    }
    if (coming(s) == 'n')
        return skip_word(s, "null");
    return !is_any(name, others) && skip_value(s);
}

/* Sources are the same in all chunks of an answer. */
static bool read_sources(struct scan *s, bool wins)
{
    const char *start;

    if (coming(s) != '[')
        return false;
    start = s->p;
    if (!skip_array(s))
        return false;
    if (wins || !s->out->citations) {
        s->out->citations = start;
        s->out->citations_len = (size_t)(s->p - start);
    }
    return true;
}

static bool chunk_member(struct scan *s, const struct text *name)
{
    static const char *const others[] = {"error", NULL};
    struct text t;

    if (is(name, "choices")) {
        if (s->choices)
            return false;
        s->choices = true;
        return take(s, '[') && read_object(s, choice_member) && take(s, ']');
    }
    if (coming(s) == 'n')
        return skip_word(s, "null");
    if (is(name, "citations"))
        return read_sources(s, true);
    if (is(name, "search_results"))
        return read_sources(s, false);
    if (is(name, "object"))
        return read_string(s, &t) && !t.escaped && !is(&t, "error");
    return !is_any(name, others) && skip_value(s);
}

bool chunk_scan(const char *s, size_t n, struct chunk *out)
{
    struct scan scan = {.p = s, .end = s + n, .out = out};

    *out = (struct chunk){.text = NULL};
    if (!read_object(&scan, chunk_member))
        return false;
    skip_blanks(&scan);
    return scan.p == scan.end && out->text != NULL;
}

bool chunk_unescape(struct buf *b, const char *s, size_t n)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    const char *end = s + n;

    while (s < end) {
        const char *slash = memchr(s, '\\', (size_t)(end - s));
        const char *known;
        buf_append(b, s, (size_t)((slash ? slash : end) - s));
        if (!slash)
            break;
        known = slash[1] ? strchr(from, slash[1]) : NULL;
        if (!known)
            return false;
        buf_putc(b, to[known - from]);
        s = slash + 2;
    }
    return true;
}
