/*
 * Writes and reads the JSON of REQUEST and THREAD records. What comes out of a log was
 * written by another process: it is checked like any input.
 */
#include "flight/request.h"

#include <string.h>

#define TEXT_MAX (16u << 20)

void turn_request_init(struct turn_request *r)
{
    memset(r, 0, sizeof *r);
    r->content.max = TEXT_MAX;
    r->system.max = TEXT_MAX;
}

void turn_request_free(struct turn_request *r)
{
    buf_free(&r->content);
    buf_free(&r->system);
    json_object_put(r->messages);
    json_object_put(r->params);
    r->messages = NULL;
    r->params = NULL;
}

static void put_text(struct buf *b, const char *name, const char *s, size_t n)
{
    buf_putc(b, b->len > 0 && b->data[b->len - 1] != '{' ? ',' : ' ');
    json_put_string(b, name, strlen(name));
    buf_putc(b, ':');
    json_put_string(b, s, n);
}

static void put_id(struct buf *b, const char *name, const struct id *id)
{
    char text[ID_TEXT_SIZE];
    if (id_is_zero(id))
        return;
    id_format(id, text);
    put_text(b, name, text, ID_TEXT_LEN);
}

static void put_json(struct buf *b, const char *name, struct json_object *o)
{
    if (!o)
        return;
    buf_printf(b, ",\"%s\":", name);
    json_put_object(b, o);
}

enum dac_err turn_request_write(const struct turn_request *r, struct buf *out)
{
    buf_putc(out, '{');
    put_text(out, "org", r->org, strlen(r->org));
    put_text(out, "provider", r->provider, strlen(r->provider));
    put_text(out, "model", r->model, strlen(r->model));
    put_id(out, "user_message_id", &r->user_message_id);
    put_id(out, "assistant_message_id", &r->assistant_message_id);
    put_id(out, "thread_id", &r->thread_id);
    put_id(out, "last_turn_id", &r->last_turn_id);
    put_text(out, "content", r->content.data ? r->content.data : "", r->content.len);
    if (r->system.len > 0)
        put_text(out, "system", r->system.data, r->system.len);
    put_json(out, "messages", r->messages);
    put_json(out, "params", r->params);
    buf_putc(out, '}');
    return out->failed ? DAC_E_NOMEM : DAC_OK;
}

static bool get_text(struct json_object *o, const char *name, char *out, size_t size)
{
    struct json_object *v = json_object_object_get(o, name);
    if (!json_object_is_type(v, json_type_string))
        return false;
    size_t n = (size_t)json_object_get_string_len(v);
    if (n >= size)
        return false;
    memcpy(out, json_object_get_string(v), n);
    out[n] = '\0';
    return true;
}

/* An absent id is zero; a malformed one is an error. */
static bool get_id(struct json_object *o, const char *name, struct id *out)
{
    struct json_object *v = json_object_object_get(o, name);
    memset(out, 0, sizeof *out);
    if (!v)
        return true;
    return json_object_is_type(v, json_type_string) &&
           id_parse(json_object_get_string(v), (size_t)json_object_get_string_len(v),
                    out);
}

static bool get_buf(struct json_object *o, const char *name, struct buf *out)
{
    struct json_object *v = json_object_object_get(o, name);
    if (!v)
        return true;
    return json_object_is_type(v, json_type_string) &&
           buf_append(out, json_object_get_string(v),
                      (size_t)json_object_get_string_len(v)) == DAC_OK;
}

static enum dac_err parse_object(const char *json, size_t n, struct json_object **out)
{
    struct json_error why;
    enum dac_err e = json_parse_strict(json, n, out, &why);
    if (e == DAC_E_NOMEM)
        return e;
    if (e != DAC_OK)
        return DAC_E_CORRUPT;
    if (json_object_is_type(*out, json_type_object))
        return DAC_OK;
    json_object_put(*out);
    return DAC_E_CORRUPT;
}

enum dac_err turn_request_parse(const char *json, size_t n, struct turn_request *out)
{
    struct json_object *o;
    enum dac_err e;

    turn_request_init(out);
    e = parse_object(json, n, &o);
    if (e != DAC_OK)
        return e;
    if (!get_text(o, "org", out->org, sizeof out->org) ||
        !get_text(o, "provider", out->provider, sizeof out->provider) ||
        !get_text(o, "model", out->model, sizeof out->model) ||
        !get_id(o, "user_message_id", &out->user_message_id) ||
        !get_id(o, "assistant_message_id", &out->assistant_message_id) ||
        !get_id(o, "thread_id", &out->thread_id) ||
        !get_id(o, "last_turn_id", &out->last_turn_id) ||
        !get_buf(o, "content", &out->content) || !get_buf(o, "system", &out->system))
        e = out->content.failed || out->system.failed ? DAC_E_NOMEM : DAC_E_CORRUPT;
    out->messages = json_object_get(json_object_object_get(o, "messages"));
    out->params = json_object_get(json_object_object_get(o, "params"));
    json_object_put(o);
    return e;
}

void thread_request_free(struct thread_request *r)
{
    buf_free(&r->title);
}

enum dac_err thread_request_write(const struct thread_request *r, struct buf *out)
{
    buf_putc(out, '{');
    put_text(out, "org", r->org, strlen(r->org));
    put_id(out, "thread_id", &r->thread_id);
    if (r->title.data)
        put_text(out, "title", r->title.data, r->title.len);
    buf_printf(out, ",\"created_us\":%lld,\"op\":%d}", (long long)r->created_us,
               (int)r->op);
    return out->failed ? DAC_E_NOMEM : DAC_OK;
}

enum dac_err thread_request_parse(const char *json, size_t n, struct thread_request *out)
{
    struct json_object *o;
    enum dac_err e;

    memset(out, 0, sizeof *out);
    out->title.max = TEXT_MAX;
    e = parse_object(json, n, &o);
    if (e != DAC_OK)
        return e;
    if (!get_text(o, "org", out->org, sizeof out->org) ||
        !get_id(o, "thread_id", &out->thread_id) || id_is_zero(&out->thread_id) ||
        !get_buf(o, "title", &out->title))
        e = out->title.failed ? DAC_E_NOMEM : DAC_E_CORRUPT;
    out->created_us = json_object_get_int64(json_object_object_get(o, "created_us"));
    int op = json_object_get_int(json_object_object_get(o, "op"));
    if (op < THREAD_CREATE || op > THREAD_DELETE)
        e = DAC_E_CORRUPT;
    else
        out->op = (enum thread_op)op;
    json_object_put(o);
    return e;
}
