/*
 * POST /v1/chat/completions: reads the request, lays the specs over each other (default,
 * next matching script, x-mock header, directive in the last user message), applies the
 * mock's own limits and starts the call.
 */
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "tools/mock/call.h"
#include "tools/mock/render.h"

static struct json_object *member(struct json_object *o, const char *name,
                                  enum json_type type)
{
    struct json_object *v = NULL;

    if (!json_object_object_get_ex(o, name, &v) || !json_object_is_type(v, type))
        return NULL;
    return v;
}

static void put_content(struct json_object *content, struct buf *out)
{
    if (json_object_is_type(content, json_type_string)) {
        buf_append(out, json_object_get_string(content),
                   (size_t)json_object_get_string_len(content));
        return;
    }
    if (!json_object_is_type(content, json_type_array))
        return;
    for (size_t i = 0; i < json_object_array_length(content); i++) {
        struct json_object *part = json_object_array_get_idx(content, i);
        struct json_object *text = member(part, "text", json_type_string);

        if (text)
            buf_append(out, json_object_get_string(text),
                       (size_t)json_object_get_string_len(text));
    }
}

/* The text of the last message of role user; and about how many tokens all messages have.
 */
static uint64_t read_messages(struct json_object *messages, struct buf *user)
{
    static struct buf text = {.max = WIRE_BODY_MAX};
    uint64_t bytes = 0;

    for (size_t i = 0; i < json_object_array_length(messages); i++) {
        struct json_object *m = json_object_array_get_idx(messages, i);
        struct json_object *role = member(m, "role", json_type_string);
        struct json_object *content = NULL;

        buf_reset(&text);
        if (json_object_is_type(m, json_type_object) &&
            json_object_object_get_ex(m, "content", &content))
            put_content(content, &text);
        bytes += text.len;
        if (role && strcmp(json_object_get_string(role), "user") == 0) {
            buf_reset(user);
            buf_append(user, text.len ? text.data : "", text.len);
        }
    }
    return (bytes + 3) / 4;
}

static char *header_lines(const struct exchange *x)
{
    struct buf b = BUF_INIT(2 * WIRE_HEAD_MAX);

    for (size_t i = 0; i < x->header_count; i++) {
        buf_puts(&b, x->headers[i].name);
        buf_puts(&b, ": ");
        buf_puts(&b, x->headers[i].value);
        buf_putc(&b, '\n');
    }
    if (!buf_cstr(&b))
        buf_free(&b);
    return b.data; /* handed over */
}

static char *copy_text(const char *s, size_t n, size_t max)
{
    size_t len = n < max ? n : max;
    char *copy = malloc(len + 1);

    if (copy) {
        memcpy(copy, s, len);
        copy[len] = '\0';
    }
    return copy;
}

static void log_request(struct exchange *x, uint64_t id, uint64_t now, const char *model,
                        const struct buf *user, uint64_t messages, bool stream)
{
    struct journal_request *r = calloc(1, sizeof(*r));
    unsigned char digest[SHA256_DIGEST_LENGTH];
    const char *body = x->body.len ? x->body.data : "";

    if (r) {
        SHA256((const unsigned char *)body, x->body.len, digest);
        bytes_hex(digest, sizeof(digest), r->body_sha256);
        r->model = strdup(model);
        r->user = copy_text(user->len ? user->data : "", user->len, JOURNAL_USER_MAX);
        r->path = strdup(x->path);
        r->headers = header_lines(x);
        r->body = copy_text(body, x->body.len, JOURNAL_BODY_MAX);
        r->body_cut = x->body.len > JOURNAL_BODY_MAX;
        r->body_len = x->body.len;
        r->messages = messages;
        r->conn = x->conn->id;
        r->stream_id = x->stream_id;
        r->tls = x->conn->ssl != NULL;
        r->stream = stream;
        r->version = exchange_version(x);
    }
    journal_add(&x->conn->mock->journal, "request", id, now, 0, 0, 0, r);
}

/* Takes the next queued script that fits. */
static enum dac_err apply_script(struct mock *m, struct spec *s, const struct buf *user)
{
    struct script *q;
    enum dac_err rc;

    TAILQ_FOREACH (q, &m->scripts, link) {
        if (!q->match ||
            (user->len && memmem(user->data, user->len, q->match, strlen(q->match))))
            break;
    }
    if (!q)
        return DAC_OK;
    rc = spec_overlay(s, &q->spec);
    if (q->left != SPEC_NEVER && --q->left == 0) {
        TAILQ_REMOVE(&m->scripts, q, link);
        spec_free(&q->spec);
        free(q->match);
        free(q);
    }
    return rc;
}

static enum dac_err build_spec(struct exchange *x, const struct buf *user, struct spec *s,
                               char err[SPEC_ERR_SIZE])
{
    const char *header = exchange_header(x, "x-mock");
    const char *words;
    size_t n = 0;
    enum dac_err rc;

    snprintf(err, SPEC_ERR_SIZE, "out of memory");
    rc = spec_overlay(s, &x->conn->mock->defaults);
    if (rc == DAC_OK)
        rc = apply_script(x->conn->mock, s, user);
    if (rc == DAC_OK && header)
        rc = spec_parse_words(s, header, strlen(header), err);
    words = user->len ? spec_find_directive(user->data, user->len, &n) : NULL;
    if (rc == DAC_OK && words)
        rc = spec_parse_words(s, words, n, err);
    return rc;
}

/* The name of the first tool of the request. */
static char *first_tool(struct json_object *body)
{
    struct json_object *tools = member(body, "tools", json_type_array);
    struct json_object *f = NULL;

    if (tools && json_object_array_length(tools) > 0)
        f = member(json_object_array_get_idx(tools, 0), "function", json_type_object);
    f = f ? member(f, "name", json_type_string) : NULL;
    return f ? strdup(json_object_get_string(f)) : NULL;
}

static bool refuse_rate(struct exchange *x, uint64_t id, uint64_t now)
{
    struct mock *m = x->conn->mock;
    uint64_t wait_ns = 0;
    char seconds[24], ms[24];
    static const char body[] =
        "{\"error\":{\"message\":\"mock rate limit\",\"type\":\"rate_limit_error\","
        "\"param\":null,\"code\":\"rate_limit_exceeded\"}}\n";
    const struct header h[] = {{"content-type", "application/json"},
                               {"retry-after", seconds},
                               {"retry-after-ms", ms}};

    if (limits_admit(&m->limits, m->stats.active, now, &wait_ns))
        return false;
    m->stats.rate_limited++;
    journal_add(&m->journal, "rate_limited", id, now, 0, 0, 429, NULL);
    snprintf(seconds, sizeof(seconds), "%llu",
             (unsigned long long)((wait_ns + NS_PER_S - 1) / NS_PER_S));
    snprintf(ms, sizeof(ms), "%llu",
             (unsigned long long)((wait_ns + NS_PER_MS - 1) / NS_PER_MS));
    mock_changed(m);
    exchange_respond(x, 429, h, DAC_ARRAY_LEN(h), body, sizeof(body) - 1);
    return true;
}

static void start_call(struct exchange *x, struct json_object *body, uint64_t id,
                       uint64_t now, const struct buf *user, uint64_t prompt_tokens)
{
    struct mock *m = x->conn->mock;
    struct call *c = calloc(1, sizeof(*c));
    struct json_object *options = member(body, "stream_options", json_type_object);
    char err[SPEC_ERR_SIZE] = "out of memory";

    if (!c) {
        mock_error(x, 500, "server_error", "mock_no_memory", err);
        return;
    }
    spec_init(&c->spec);
    if (build_spec(x, user, &c->spec, err) != DAC_OK) {
        spec_free(&c->spec);
        free(c);
        m->stats.bad_requests++;
        journal_add(&m->journal, "bad_request", id, now, 0, 0, 400, NULL);
        mock_error(x, 400, "invalid_request_error", "mock_bad_spec", err);
        return;
    }
    c->mock = m;
    c->x = x;
    c->id = id;
    c->arrived_ns = now;
    c->stream = json_object_get_boolean(member(body, "stream", json_type_boolean));
    c->include_usage = options && json_object_get_boolean(member(options, "include_usage",
                                                                 json_type_boolean));
    answer_init(&c->answer, &c->spec, user->len ? user->data : "", user->len);
    c->answer.model = strdup(
        c->spec.model ? c->spec.model
                      : json_object_get_string(member(body, "model", json_type_string)));
    c->answer.tool = first_tool(body);
    c->answer.prompt_tokens = prompt_tokens;
    TAILQ_INSERT_TAIL(&m->calls, c, link);
    m->stats.calls++;
    m->stats.active++;
    if (m->stats.active > m->stats.max_concurrent)
        m->stats.max_concurrent = m->stats.active;
    mock_changed(m);
    call_start(c);
}

static bool is_authorized(struct exchange *x)
{
    const char *key = x->conn->mock->api_key;
    const char *given = exchange_header(x, "authorization");

    return !key ||
           (given && strncmp(given, "Bearer ", 7) == 0 && strcmp(given + 7, key) == 0);
}

void chat_request(struct exchange *x)
{
    static struct buf user = {.max = WIRE_BODY_MAX};
    struct mock *m = x->conn->mock;
    struct json_object *body = NULL, *messages, *model;
    struct json_error bad;
    uint64_t now = clock_now_ns(), id = m->next_call++, prompt_tokens;

    m->stats.requests++;
    if (!is_authorized(x)) {
        m->stats.unauthorized++;
        mock_error(x, 401, "authentication_error", "invalid_api_key", "wrong API key");
        return;
    }
    if (json_parse_strict(x->body.len ? x->body.data : "", x->body.len, &body, &bad) !=
        DAC_OK) {
        m->stats.bad_requests++;
        mock_error(x, 400, "invalid_request_error", "mock_bad_json", bad.message);
        return;
    }
    messages = member(body, "messages", json_type_array);
    model = member(body, "model", json_type_string);
    if (!model || !messages || json_object_array_length(messages) == 0) {
        m->stats.bad_requests++;
        mock_error(x, 400, "invalid_request_error", "mock_bad_request",
                   "model (a string) and messages (not empty) are needed");
    } else {
        buf_reset(&user);
        prompt_tokens = read_messages(messages, &user);
        log_request(x, id, now, json_object_get_string(model), &user,
                    json_object_array_length(messages),
                    json_object_get_boolean(member(body, "stream", json_type_boolean)));
        if (!refuse_rate(x, id, now))
            start_call(x, body, id, now, &user, prompt_tokens);
    }
    json_object_put(body);
}
