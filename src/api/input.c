/*
 * Checks of requests that several resources share.
 */
#include "api/input.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "flight/key.h"

#define KEY_MAX 255

/* Where the body's member stands that `field` begins with ("messages[2].role"), or -1. */
static long offset_of(const struct http_exchange *ex, const char *field)
{
    char name[64];
    size_t n;
    const char *body = http_body(ex, &n);
    size_t len = field ? strcspn(field, ".[") : 0;

    if (n == 0 || len == 0 || len >= sizeof name)
        return -1;
    memcpy(name, field, len);
    name[len] = '\0';
    size_t at = json_member_offset(body, n, name);
    return at == SIZE_MAX ? -1 : (long)at;
}

void input_refuse(struct http_exchange *ex, int status, const char *code,
                  const char *field, const char *fmt, ...)
{
    struct http_problem p = {.status = status,
                             .code = code,
                             .field = field,
                             .offset = status == 400 ? offset_of(ex, field) : -1};
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    http_respond_problem(ex, &p, "%s", text);
}

static bool is_org(const char *v)
{
    size_t n = strlen(v);

    return n > 0 && n <= ORG_MAX && utf8_valid(v, n);
}

bool input_org(struct http_exchange *ex, char org[ORG_MAX + 1])
{
    const char *v = http_header(ex, "x-org-id");

    if (!v) {
        snprintf(org, ORG_MAX + 1, "default");
        return true;
    }
    if (!is_org(v)) {
        input_refuse(ex, 400, "bad_org", "x-org-id",
                     "header x-org-id must be 1 to %d bytes of UTF-8", ORG_MAX);
        return false;
    }
    memcpy(org, v, strlen(v) + 1);
    return true;
}

void input_describe(struct http_exchange *ex, void *ctx, struct http_report *out)
{
    const char *org = http_header(ex, "x-org-id");
    const char *path = http_path(ex);
    const char *arg = http_path_arg(ex, 0);
    struct id id;

    (void)ctx;
    if (org && is_org(org))
        out->org = org;
    if (path && arg && strncmp(path, "/api/turns/", 11) == 0 &&
        id_parse(arg, strlen(arg), &id))
        out->turn = arg;
}

bool input_key(struct http_exchange *ex, const struct id *thread,
               struct json_object *body, struct ask_key *out)
{
    const char *v = http_header(ex, "Idempotency-Key");
    size_t n = v ? strlen(v) : 0;
    bool ok = n >= 1 && n <= KEY_MAX && http_header_count(ex, "Idempotency-Key") == 1;

    out->given = v != NULL;
    if (!v)
        return true;
    for (size_t i = 0; ok && i < n; i++)
        ok = v[i] >= 0x20 && v[i] <= 0x7e;
    if (!ok) {
        input_refuse(ex, 400, "bad_header", "Idempotency-Key",
                     "header Idempotency-Key must be 1 to %d printable ASCII characters, "
                     "and be sent once",
                     KEY_MAX);
        return false;
    }
    if (key_of_header(v, out->digest) == DAC_OK &&
        key_of_body(thread, body, out->body) == DAC_OK)
        return true;
    http_respond_no_memory(ex);
    return false;
}

bool input_object(struct http_exchange *ex, bool empty_ok, struct json_object **out)
{
    struct json_error err;
    size_t n;
    const char *body = http_body(ex, &n);

    if (n == 0 && empty_ok) {
        *out = json_object_new_object();
        if (*out)
            return true;
        http_respond_no_memory(ex);
        return false;
    }
    enum dac_err e = json_parse_strict(body, n, out, &err);
    if (e == DAC_E_NOMEM) {
        http_respond_no_memory(ex);
        return false;
    }
    if (e != DAC_OK) {
        struct http_problem p = {.status = 400,
                                 .code = "bad_json",
                                 .field = err.field[0] ? err.field : NULL,
                                 .offset = (long)err.offset};
        http_respond_problem(ex, &p, "the body is no valid JSON at byte %zu%s%s: %s",
                             err.offset, err.field[0] ? ", in " : "", err.field,
                             err.message);
        return false;
    }
    if (!json_object_is_type(*out, json_type_object)) {
        json_object_put(*out);
        input_refuse(ex, 400, "bad_json", NULL, "the body must be a JSON object");
        return false;
    }
    return true;
}

bool input_known(struct http_exchange *ex, struct json_object *o,
                 const char *const *names)
{
    json_object_object_foreach(o, name, value)
    {
        const char *const *p = names;
        (void)value;
        while (*p && strcmp(*p, name) != 0)
            p++;
        if (*p)
            continue;
        struct buf list = BUF_INIT(1024);
        for (p = names; *p; p++)
            buf_printf(&list, "%s%s", p == names ? "" : ", ", *p);
        const char *text = buf_cstr(&list);
        input_refuse(ex, 400, "unknown_field", name,
                     "member \"%.64s\" is not known here; known are %s", name,
                     text ? text : "others");
        buf_free(&list);
        return false;
    }
    return true;
}

/* An absent member and null are the same. */
static struct json_object *member(struct json_object *o, const char *name)
{
    return json_object_object_get(o, name);
}

bool input_string(struct http_exchange *ex, struct json_object *o, const char *name,
                  size_t max, const char **out, size_t *len)
{
    struct json_object *v = member(o, name);

    *out = NULL;
    if (len)
        *len = 0;
    if (!v)
        return true;
    if (!json_object_is_type(v, json_type_string)) {
        input_refuse(ex, 400, "bad_field", name, "%s must be a string", name);
        return false;
    }
    size_t n = (size_t)json_object_get_string_len(v);
    if (n > max) {
        input_refuse(ex, 400, "bad_field", name,
                     "%s has %zu bytes; at most %zu are allowed", name, n, max);
        return false;
    }
    *out = json_object_get_string(v);
    if (len)
        *len = n;
    return true;
}

bool input_bool(struct http_exchange *ex, struct json_object *o, const char *name,
                bool *out)
{
    struct json_object *v = member(o, name);

    if (!v)
        return true;
    if (!json_object_is_type(v, json_type_boolean)) {
        input_refuse(ex, 400, "bad_field", name, "%s must be true or false", name);
        return false;
    }
    *out = json_object_get_boolean(v);
    return true;
}

bool input_number(struct http_exchange *ex, struct json_object *o, const char *name,
                  double min, double max, bool integer, bool *present, double *out)
{
    struct json_object *v = member(o, name);
    bool is_int = json_object_is_type(v, json_type_int);

    *present = false;
    if (!v)
        return true;
    double d = json_object_get_double(v);
    if ((!is_int && !json_object_is_type(v, json_type_double)) || d < min || d > max ||
        (integer && d != floor(d))) {
        input_refuse(ex, 400, "bad_field", name, "%s must be %s from %.10g to %.10g",
                     name, integer ? "a whole number" : "a number", min, max);
        return false;
    }
    *present = true;
    *out = d;
    return true;
}

bool input_path_id(struct http_exchange *ex, size_t i, const char *what, struct id *out)
{
    const char *arg = http_path_arg(ex, i);
    char code[32];

    if (arg && id_parse(arg, strlen(arg), out))
        return true;
    snprintf(code, sizeof code, "%s_not_found", what);
    input_refuse(ex, 404, code, NULL, "there is no %s with this id", what);
    return false;
}

bool input_page(struct http_exchange *ex, size_t def, size_t max, size_t *limit,
                struct id *after)
{
    const char *l = http_query(ex, "limit");
    const char *a = http_query(ex, "after");
    uint64_t n = def;

    memset(after, 0, sizeof *after);
    if (l && (!bytes_parse_u64(l, strlen(l), max, &n) || n == 0)) {
        input_refuse(ex, 400, "bad_query", "limit",
                     "limit must be a number from 1 to %zu", max);
        return false;
    }
    if (a && !id_parse(a, strlen(a), after)) {
        input_refuse(ex, 400, "bad_query", "after",
                     "after must be the id that \"next\" gave");
        return false;
    }
    *limit = (size_t)n;
    return true;
}

/* --- providers ---------------------------------------------------------------------- */

static void refuse_with_list(struct http_exchange *ex, int status, const char *code,
                             const char *field, struct buf *list, const char *text)
{
    const char *extra = buf_cstr(list);
    struct http_problem p = {.status = status,
                             .code = code,
                             .field = field,
                             .offset = -1,
                             .extra_json = extra};
    http_respond_problem(ex, &p, "%s", text);
    buf_free(list);
}

static void list_models(struct buf *b, const struct config_provider *p)
{
    for (size_t i = 0; i < p->models.count; i++) {
        if (b->len > 0 && b->data[b->len - 1] != '[')
            buf_putc(b, ',');
        json_put_string(b, p->models.items[i], strlen(p->models.items[i]));
    }
}

static void unknown_provider(struct api *api, struct http_exchange *ex, const char *name)
{
    struct buf list = BUF_INIT(16384);
    struct buf text = BUF_INIT(2048);

    buf_printf(&text, "provider \"%.64s\" is not configured; configured are", name);
    buf_puts(&list, "\"available\":[");
    for (size_t i = 0; i < api->config->provider_count; i++) {
        const char *p = api->config->providers[i].name;
        if (i > 0)
            buf_putc(&list, ',');
        json_put_string(&list, p, strlen(p));
        buf_printf(&text, "%s %s", i > 0 ? "," : "", p);
    }
    buf_putc(&list, ']');
    const char *t = buf_cstr(&text);
    refuse_with_list(ex, 400, "unknown_provider", "provider", &list,
                     t ? t : "unknown provider");
    buf_free(&text);
}

static void unknown_model(struct api *api, struct http_exchange *ex,
                          const struct config_provider *only, const char *model)
{
    struct buf list = BUF_INIT(65536);
    char text[512];

    buf_puts(&list, "\"available\":[");
    for (size_t i = 0; i < api->config->provider_count; i++)
        if (!only || only == &api->config->providers[i])
            list_models(&list, &api->config->providers[i]);
    buf_putc(&list, ']');
    snprintf(text, sizeof text,
             "model \"%.128s\" is not configured%s%s; see \"available\"", model,
             only ? " for provider " : "", only ? only->name : "");
    refuse_with_list(ex, 404, "unknown_model", "model", &list, text);
}

/* The model meant when none is named: the provider's first that is no pattern. */
static const char *default_model(const struct config_provider *p)
{
    for (size_t i = 0; i < p->models.count; i++)
        if (!strpbrk(p->models.items[i], "*?["))
            return p->models.items[i];
    return NULL;
}

bool input_provider(struct api *api, struct http_exchange *ex, const char *provider,
                    const char *model, struct ask *ask)
{
    const struct config *cfg = api->config;
    const struct config_provider *p = NULL;

    if (cfg->provider_count == 0) {
        input_refuse(ex, 503, "no_provider", NULL,
                     "no provider is configured; add a [provider NAME] section");
        return false;
    }
    if (provider) {
        p = config_provider_find(cfg, provider);
        if (!p) {
            unknown_provider(api, ex, provider);
            return false;
        }
    }
    if (!model)
        model = default_model(p ? p : &cfg->providers[0]);
    if (!model || !model[0]) {
        input_refuse(ex, 400, "missing_field", "model", "model is required");
        return false;
    }
    if (!p)
        p = config_provider_for_model(cfg, model);
    else if (!config_model_matches(p, model)) {
        unknown_model(api, ex, p, model);
        return false;
    }
    if (!p) {
        unknown_model(api, ex, NULL, model);
        return false;
    }
    ask->provider = p->slot;
    snprintf(ask->request.provider, sizeof ask->request.provider, "%s", p->name);
    snprintf(ask->request.model, sizeof ask->request.model, "%s", model);
    return true;
}

void input_sharing(struct api *api, struct http_exchange *ex, bool stream, bool tools,
                   struct ask *ask)
{
    const struct config *cfg = api->config;

    ask->unshared = tools || http_header_has_token(ex, "Cache-Control", "no-store");
    ask->bypass = ask->unshared || !cfg->coalesce_enabled ||
                  (stream && !cfg->stream_fanout_enabled);
    ask->no_finished = http_header_has_token(ex, "Cache-Control", "no-cache");
    if (ask->abandon_grace_ns == 0)
        ask->abandon_grace_ns = cfg->abandon_grace_ns;
}
