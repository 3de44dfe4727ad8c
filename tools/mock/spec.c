/*
 * The table of all keys a spec knows, and the readers that fill a spec from words or
 * JSON. What a value may be is checked here once; the rest of the mock trusts a spec.
 * Used by the mock's only process and by its unit test.
 */
#include "tools/mock/spec.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/json.h"

#define TOKENS_MAX  UINT64_C(10000000)
#define BYTES_MAX   (UINT64_C(64) << 20)
#define VALUE_MAX   ((size_t)1 << 20)
#define DURATION_MS UINT64_C(86400000)

enum spec_type {
    TYPE_DURATION,
    TYPE_NUMBER,
    TYPE_POSITION, /* a number, or "never" */
    TYPE_FLAG,
    TYPE_CHOICE,
    TYPE_STRING,
    TYPE_BARRIER,
};

struct spec_key {
    const char *name;
    enum spec_type type;
    size_t offset;
    uint64_t max;
    const char *choices; /* separated by '|', in the order of their enum */
    const char *help;
};

#define AT(field) offsetof(struct spec, field)

static const struct spec_key keys[] = {
    {"ttft", TYPE_DURATION, AT(ttft), 0, NULL,
     "time to the first token (or to the error)"},
    {"gap", TYPE_DURATION, AT(gap), 0, NULL, "time between tokens"},
    {"tokens", TYPE_NUMBER, AT(tokens), TOKENS_MAX, NULL, "content tokens (20)"},
    {"token_size", TYPE_NUMBER, AT(token_size), 1 << 20, NULL,
     "bytes of each token, padded with x"},
    {"text", TYPE_STRING, AT(text), 0, NULL,
     "the answer itself, cut into `tokens` or `token_size`"},
    {"utf8", TYPE_FLAG, AT(utf8), 1, NULL, "tokens hold characters of 2 to 4 bytes"},
    {"reasoning", TYPE_NUMBER, AT(reasoning), TOKENS_MAX, NULL,
     "reasoning_content deltas before the content"},
    {"citations", TYPE_NUMBER, AT(citations), 1000, NULL,
     "so many URLs in a top-level `citations` of each chunk"},
    {"tool_calls", TYPE_FLAG, AT(tool_calls), 1, NULL,
     "a tool call; no content unless `tokens` is named"},
    {"huge_line", TYPE_NUMBER, AT(huge_line), BYTES_MAX, NULL,
     "content bytes of the first token's one line"},
    {"finish", TYPE_STRING, AT(finish), 0, NULL, "finish_reason (stop)"},
    {"usage", TYPE_CHOICE, AT(usage), 0, "asked|always|never", "the usage chunk"},
    {"role", TYPE_CHOICE, AT(role), 0, "late|early|null|none",
     "the role chunk: before the first token, with the headers, content null, or none"},
    {"model", TYPE_STRING, AT(model), 0, NULL, "model named in the answer"},
    {"headers", TYPE_CHOICE, AT(headers), 0, "early|late",
     "status line at once, or with the first token"},
    {"delay_headers", TYPE_FLAG, AT(delay_headers), 1, NULL, "headers=late"},
    {"status", TYPE_NUMBER, AT(status), 599, NULL, "HTTP status, with an error body"},
    {"retry_after", TYPE_STRING, AT(retry_after), 0, NULL, "the Retry-After header"},
    {"body", TYPE_STRING, AT(body), 0, NULL,
     "body for `status` and `wrong_type`, data of `error_event`"},
    {"content_type", TYPE_STRING, AT(content_type), 0, NULL,
     "Content-Type of the answer"},
    {"wrong_type", TYPE_FLAG, AT(wrong_type), 1, NULL, "200 with a text/html page"},
    {"redirect", TYPE_STRING, AT(redirect), 0, NULL, "307 (or `status`) to this URL"},
    {"cut", TYPE_POSITION, AT(cut), TOKENS_MAX, NULL, "breaks off after so many tokens"},
    {"cut_delay", TYPE_DURATION, AT(cut_delay), 0, NULL,
     "how long after the last token it breaks off (0; in h2 10ms)"},
    {"cut_mode", TYPE_CHOICE, AT(cut_mode), 0, "close|rst",
     "close: end of connection, in h2 RST_STREAM; rst: TCP reset"},
    {"stall", TYPE_POSITION, AT(stall), TOKENS_MAX, NULL, "silence after so many tokens"},
    {"junk", TYPE_POSITION, AT(junk), TOKENS_MAX, NULL, "garbage after so many tokens"},
    {"junk_kind", TYPE_CHOICE, AT(junk_kind), 0, "data|line|raw",
     "a data line that is no JSON, a line without a field, or bytes outside HTTP"},
    {"error_event", TYPE_POSITION, AT(error_event), TOKENS_MAX, NULL,
     "an error object in the stream after so many tokens, which then ends"},
    {"empty", TYPE_FLAG, AT(empty), 1, NULL, "nothing but [DONE]"},
    {"no_finish", TYPE_FLAG, AT(no_finish), 1, NULL, "no finish_reason"},
    {"no_done", TYPE_FLAG, AT(no_done), 1, NULL, "no [DONE]"},
    {"hold", TYPE_FLAG, AT(hold), 1, NULL,
     "the response stays open behind its last byte"},
    {"close", TYPE_FLAG, AT(close), 1, NULL,
     "the connection is closed behind the answer"},
    {"split", TYPE_NUMBER, AT(split), 1 << 20, NULL, "sends pieces of so many bytes"},
    {"split_gap", TYPE_DURATION, AT(split_gap), 0, NULL, "time between those pieces"},
    {"crlf", TYPE_FLAG, AT(crlf), 1, NULL, "eol=crlf"},
    {"eol", TYPE_CHOICE, AT(eol), 0, "lf|crlf|cr", "line ends of the event stream"},
    {"comments", TYPE_FLAG, AT(comments), 1, NULL, "an SSE comment before each event"},
    {"ping", TYPE_DURATION, AT(ping), 0, NULL,
     "an SSE comment this often, also in silence"},
    {"barrier", TYPE_BARRIER, AT(barriers), 0, NULL,
     "waits for NAME, or NAME@TOKEN, several separated by commas"},
    {"barrier_at", TYPE_NUMBER, AT(barrier_at), TOKENS_MAX, NULL,
     "the token before which a barrier without @ waits (0)"},
};

#define KEY_COUNT DAC_ARRAY_LEN(keys)
_Static_assert(KEY_COUNT <= 64, "the mask of named keys has 64 bits");

static uint64_t *key_number(struct spec *s, const struct spec_key *k)
{
    return (uint64_t *)(void *)((char *)s + k->offset);
}

static char **key_string(struct spec *s, const struct spec_key *k)
{
    return (char **)(void *)((char *)s + k->offset);
}

void spec_init(struct spec *s)
{
    *s = (struct spec){.tokens = 20,
                       .cut = SPEC_NEVER,
                       .stall = SPEC_NEVER,
                       .junk = SPEC_NEVER,
                       .error_event = SPEC_NEVER};
}

void spec_free(struct spec *s)
{
    for (size_t i = 0; i < KEY_COUNT; i++) {
        if (keys[i].type == TYPE_STRING)
            free(*key_string(s, &keys[i]));
    }
    spec_init(s);
}

static enum dac_err set_string(char **to, const char *v, size_t n)
{
    char *copy = malloc(n + 1);

    if (!copy)
        return DAC_E_NOMEM;
    memcpy(copy, v, n);
    copy[n] = '\0';
    free(*to);
    *to = copy;
    return DAC_OK;
}

enum dac_err spec_overlay(struct spec *dst, const struct spec *src)
{
    /* The accessors take what they change; nothing is changed through this pointer. */
    struct spec *from = (struct spec *)(uintptr_t)src;

    if (!src->set)
        return DAC_OK;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        const struct spec_key *k = &keys[i];

        if (!(src->set >> i & 1))
            continue;
        if (k->type == TYPE_STRING) {
            const char *v = *key_string(from, k);

            if (set_string(key_string(dst, k), v, strlen(v)) != DAC_OK)
                return DAC_E_NOMEM;
        } else if (k->type == TYPE_BARRIER) {
            memcpy(dst->barriers, src->barriers, sizeof(dst->barriers));
            dst->barrier_count = src->barrier_count;
        } else {
            *key_number(dst, k) = *key_number(from, k);
        }
    }
    dst->set |= src->set;
    return DAC_OK;
}

bool spec_names(const struct spec *s, const char *key)
{
    for (size_t i = 0; i < KEY_COUNT; i++) {
        if (strcmp(keys[i].name, key) == 0)
            return s->set >> i & 1;
    }
    return false;
}

bool spec_parse_duration(const char *s, size_t n, uint64_t *ns)
{
    static const struct {
        const char *unit;
        uint64_t ns;
    } units[] = {{"", NS_PER_MS}, {"ms", NS_PER_MS}, {"us", NS_PER_US},
                 {"ns", 1},       {"s", NS_PER_S},   {"m", 60 * NS_PER_S}};
    size_t digits = 0;
    uint64_t v;

    while (digits < n && isdigit((unsigned char)s[digits]))
        digits++;
    for (size_t i = 0; i < DAC_ARRAY_LEN(units); i++) {
        if (!bytes_ieq(s + digits, n - digits, units[i].unit))
            continue;
        if (!bytes_parse_u64(s, digits, DURATION_MS * NS_PER_MS / units[i].ns, &v))
            return false;
        *ns = v * units[i].ns;
        return true;
    }
    return false;
}

static bool parse_choice(const char *choices, const char *v, size_t n, uint64_t *out)
{
    uint64_t index = 0;

    for (const char *p = choices; *p; index++) {
        size_t len = strcspn(p, "|");

        if (len == n && memcmp(p, v, n) == 0) {
            *out = index;
            return true;
        }
        p += len;
        if (*p)
            p++;
    }
    return false;
}

/* NAME[@TOKEN][,NAME[@TOKEN]…] */
static bool parse_barriers(struct spec *s, const char *v, size_t n)
{
    s->barrier_count = 0;
    while (n > 0) {
        const char *comma = memchr(v, ',', n);
        size_t len = comma ? (size_t)(comma - v) : n;
        const char *at = memchr(v, '@', len);
        size_t name = at ? (size_t)(at - v) : len;
        struct spec_barrier *b = &s->barriers[s->barrier_count];

        if (s->barrier_count == SPEC_BARRIERS || name == 0 || name >= SPEC_NAME_SIZE)
            return false;
        memcpy(b->name, v, name);
        b->name[name] = '\0';
        b->at = SPEC_NEVER;
        if (at && !bytes_parse_u64(at + 1, len - name - 1, TOKENS_MAX, &b->at))
            return false;
        s->barrier_count++;
        v += comma ? len + 1 : len;
        n -= comma ? len + 1 : len;
    }
    return s->barrier_count > 0;
}

static bool parse_flag(const char *v, size_t n, uint64_t *out)
{
    if (bytes_ieq(v, n, "1") || bytes_ieq(v, n, "true")) {
        *out = 1;
        return true;
    }
    *out = 0;
    return bytes_ieq(v, n, "0") || bytes_ieq(v, n, "false");
}

static bool parse_value(struct spec *s, const struct spec_key *k, const char *v, size_t n)
{
    switch (k->type) {
    case TYPE_DURATION:
        return spec_parse_duration(v, n, key_number(s, k));
    case TYPE_NUMBER:
        return bytes_parse_u64(v, n, k->max, key_number(s, k));
    case TYPE_POSITION:
        if (bytes_ieq(v, n, "never")) {
            *key_number(s, k) = SPEC_NEVER;
            return true;
        }
        return bytes_parse_u64(v, n, k->max, key_number(s, k));
    case TYPE_FLAG:
        return parse_flag(v, n, key_number(s, k));
    case TYPE_CHOICE:
        return parse_choice(k->choices, v, n, key_number(s, k));
    case TYPE_STRING:
        return n <= VALUE_MAX && set_string(key_string(s, k), v, n) == DAC_OK;
    case TYPE_BARRIER:
        return parse_barriers(s, v, n);
    }
    return false;
}

static enum dac_err set_key(struct spec *s, const char *name, size_t name_len,
                            const char *v, size_t n, char err[SPEC_ERR_SIZE])
{
    for (size_t i = 0; i < KEY_COUNT; i++) {
        const struct spec_key *k = &keys[i];

        if (strlen(k->name) != name_len || memcmp(k->name, name, name_len) != 0)
            continue;
        if (!parse_value(s, k, v, n)) {
            snprintf(err, SPEC_ERR_SIZE, "bad value of %s: \"%.*s\"", k->name,
                     n < 60 ? (int)n : 60, v);
            return DAC_E_INVALID;
        }
        s->set |= UINT64_C(1) << i;
        if (k->offset == AT(crlf) && s->crlf)
            return set_key(s, "eol", 3, "crlf", 4, err);
        if (k->offset == AT(delay_headers) && s->delay_headers)
            return set_key(s, "headers", 7, "late", 4, err);
        return DAC_OK;
    }
    snprintf(err, SPEC_ERR_SIZE, "unknown key \"%.*s\"",
             name_len < 60 ? (int)name_len : 60, name);
    return DAC_E_INVALID;
}

/* Reads a quoted value behind its opening quote; returns what follows the closing one. */
static const char *unquote(const char *p, const char *end, struct buf *out)
{
    for (; p < end && *p != '"'; p++) {
        char c = *p;

        if (c == '\\' && p + 1 < end) {
            c = *++p;
            if (c == 'n')
                c = '\n';
            else if (c == 'r')
                c = '\r';
            else if (c == 't')
                c = '\t';
        }
        buf_putc(out, c);
    }
    return p < end ? p + 1 : NULL;
}

enum dac_err spec_parse_words(struct spec *s, const char *text, size_t n,
                              char err[SPEC_ERR_SIZE])
{
    const char *p = text, *end = text + n;
    struct buf value = BUF_INIT(VALUE_MAX);
    enum dac_err rc = DAC_OK;

    while (rc == DAC_OK) {
        const char *name, *v;
        size_t name_len;

        while (p < end && (isspace((unsigned char)*p) || *p == ';'))
            p++;
        if (p == end)
            break;
        for (name = p; p < end && *p != '=' && !isspace((unsigned char)*p); p++)
            ;
        name_len = (size_t)(p - name);
        if (p == end || *p != '=') {
            rc = set_key(s, name, name_len, "1", 1, err);
            continue;
        }
        v = ++p;
        if (p < end && *p == '"') {
            buf_reset(&value);
            p = unquote(p + 1, end, &value);
            if (!p || value.failed) {
                snprintf(err, SPEC_ERR_SIZE, "unclosed quote or too long a value of %.*s",
                         name_len < 60 ? (int)name_len : 60, name);
                rc = DAC_E_INVALID;
                break;
            }
            rc = set_key(s, name, name_len, value.len ? value.data : "", value.len, err);
            continue;
        }
        while (p < end && !isspace((unsigned char)*p) && *p != ';')
            p++;
        rc = set_key(s, name, name_len, v, (size_t)(p - v), err);
    }
    buf_free(&value);
    return rc;
}

static bool is_listed(const char *name, const char *const *list)
{
    for (; list && *list; list++) {
        if (strcmp(name, *list) == 0)
            return true;
    }
    return false;
}

enum dac_err spec_parse_json(struct spec *s, struct json_object *o,
                             const char *const *skip, char err[SPEC_ERR_SIZE])
{
    struct buf value = BUF_INIT(VALUE_MAX);
    enum dac_err rc = DAC_OK;

    if (!json_object_is_type(o, json_type_object)) {
        snprintf(err, SPEC_ERR_SIZE, "a spec is an object");
        return DAC_E_INVALID;
    }
    json_object_object_foreach(o, name, v)
    {
        if (rc != DAC_OK || is_listed(name, skip))
            continue;
        buf_reset(&value);
        if (json_object_is_type(v, json_type_string))
            buf_append(&value, json_object_get_string(v),
                       (size_t)json_object_get_string_len(v));
        else
            json_put_object(&value, v);
        if (value.failed) {
            snprintf(err, SPEC_ERR_SIZE, "too long a value of %.60s", name);
            rc = DAC_E_INVALID;
        } else {
            rc = set_key(s, name, strlen(name), value.len ? value.data : "", value.len,
                         err);
        }
    }
    buf_free(&value);
    return rc;
}

const char *spec_find_directive(const char *text, size_t n, size_t *len)
{
    static const char mark[] = "[mock ";
    const char *start = memmem(text, n, mark, sizeof(mark) - 1);
    const char *end = text + n;
    bool quoted = false;

    if (!start)
        return NULL;
    start += sizeof(mark) - 1;
    for (const char *p = start; p < end; p++) {
        if (*p == '\\' && quoted)
            p++;
        else if (*p == '"')
            quoted = !quoted;
        else if (*p == ']' && !quoted) {
            *len = (size_t)(p - start);
            return start;
        }
    }
    return NULL;
}

void spec_print_help(FILE *to)
{
    for (size_t i = 0; i < KEY_COUNT; i++) {
        fprintf(to, "  %-14s %s%s%s%s\n", keys[i].name, keys[i].help,
                keys[i].choices ? " (" : "", keys[i].choices ? keys[i].choices : "",
                keys[i].choices ? ")" : "");
    }
}
