/*
 * Strict parsing and writing of JSON: json_check() decides, json_build() makes json-c's
 * objects, and they are written compact, their depth being bounded by who made them. Any
 * process.
 */
#include "base/json.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/json_build.h"
#include "base/json_check.h"

enum dac_err json_parse_strict(const char *text, size_t n, struct json_object **out,
                               struct json_error *err)
{
    enum dac_err rc;

    *out = NULL;
    *err = (struct json_error){0};
    if (n >= INT_MAX) {
        snprintf(err->message, sizeof(err->message), "text is too long");
        return DAC_E_INVALID;
    }
    rc = json_check(text, n, err);
    if (rc == DAC_OK)
        rc = json_build(text, n, out, &err->offset);
    if (rc == DAC_E_INVALID && !err->message[0])
        snprintf(err->message, sizeof(err->message), "no valid JSON");
    return rc;
}

void json_put_string(struct buf *b, const char *s, size_t n)
{
    buf_putc(b, '"');
    json_put_escaped(b, s, n);
    buf_putc(b, '"');
}

static void put_double(struct buf *b, struct json_object *o)
{
    const char *text = json_object_get_userdata(o); /* as it was read */
    char number[32];

    if (!text) {
        snprintf(number, sizeof(number), "%.17g", json_object_get_double(o));
        text = number;
    }
    buf_puts(b, text);
    if (text == number && !strpbrk(number, ".e"))
        buf_puts(b, ".0");
}

static void put_int(struct buf *b, struct json_object *o)
{
    int64_t v = json_object_get_int64(o);

    if (v == INT64_MAX)
        buf_printf(b, "%" PRIu64, json_object_get_uint64(o));
    else
        buf_printf(b, "%" PRId64, v);
}

static void put_members(struct buf *b, struct json_object *o)
{
    const char *comma = "";

    buf_putc(b, '{');
    json_object_object_foreach(o, name, value)
    {
        buf_puts(b, comma);
        json_put_string(b, name, strlen(name));
        buf_putc(b, ':');
        json_put_object(b, value);
        comma = ",";
    }
    buf_putc(b, '}');
}

static void put_elements(struct buf *b, struct json_object *o)
{
    size_t n = json_object_array_length(o);

    buf_putc(b, '[');
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            buf_putc(b, ',');
        json_put_object(b, json_object_array_get_idx(o, i));
    }
    buf_putc(b, ']');
}

void json_put_member(struct buf *b, const char *name, const char *text)
{
    buf_printf(b, ",\"%s\":", name);
    if (text)
        json_put_string(b, text, strlen(text));
    else
        buf_puts(b, "null");
}

/* json-c's own writer does not notice when it runs out of memory in the middle. */
void json_put_object(struct buf *b, struct json_object *o)
{
    switch (json_object_get_type(o)) {
    case json_type_null:
        buf_puts(b, "null");
        break;
    case json_type_boolean:
        buf_puts(b, json_object_get_boolean(o) ? "true" : "false");
        break;
    case json_type_double:
        put_double(b, o);
        break;
    case json_type_int:
        put_int(b, o);
        break;
    case json_type_object:
        put_members(b, o);
        break;
    case json_type_array:
        put_elements(b, o);
        break;
    case json_type_string:
        json_put_string(b, json_object_get_string(o),
                        (size_t)json_object_get_string_len(o));
        break;
    }
}
