/*
 * Strict parsing and writing of JSON: json_check() decides, json-c builds, and what
 * json-c would print with blanks or escaped slashes goes out compact. Any process.
 */
#include "base/json.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/json_check.h"

enum dac_err json_parse_strict(const char *text, size_t n, struct json_object **out,
                               struct json_error *err)
{
    struct json_tokener *tok;
    struct json_object *o;
    enum json_tokener_error e;
    enum dac_err rc;

    *out = NULL;
    *err = (struct json_error){0};
    if (n >= INT_MAX) {
        snprintf(err->message, sizeof(err->message), "text is too long");
        return DAC_E_INVALID;
    }
    rc = json_check(text, n, err);
    if (rc != DAC_OK)
        return rc;

    /* json-c counts one level for the value itself and one for what would follow. */
    tok = json_tokener_new_ex(JSON_DEPTH_MAX + 2);
    if (!tok)
        return DAC_E_NOMEM;
    o = json_tokener_parse_ex(tok, text, (int)n);
    e = json_tokener_get_error(tok);
    if (e == json_tokener_continue) {
        /* A number at the very end is over only when something follows it. */
        o = json_tokener_parse_ex(tok, "", 1);
        e = json_tokener_get_error(tok);
    }
    if (e == json_tokener_success) {
        *out = o;
    } else {
        err->offset = json_tokener_get_parse_end(tok);
        snprintf(err->message, sizeof(err->message), "%s", json_tokener_error_desc(e));
        rc = DAC_E_INVALID;
    }
    json_tokener_free(tok);
    return rc;
}

void json_put_string(struct buf *b, const char *s, size_t n)
{
    buf_putc(b, '"');
    json_put_escaped(b, s, n);
    buf_putc(b, '"');
}

void json_put_object(struct buf *b, struct json_object *o)
{
    size_t n;
    const char *s = json_object_to_json_string_length(
        o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &n);

    if (s)
        buf_append(b, s, n);
    else
        b->failed = true;
}
