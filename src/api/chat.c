/*
 * POST /v1/chat/completions and GET /v1/models: OpenAI's dialect, for the stock clients.
 *
 * The status line waits for the provider's verdict, so that a 429 is a 429. A stream that
 * breaks gets an error chunk and no [DONE]. What the provider is asked is what the client
 * sent, but for the members that are DAC's own business.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/routes.h"
#include "base/clock.h"
#include "http/sse.h"

#define CHAT_ID_SIZE 48
#define ANSWER_MAX   (128u << 20)

/* chatcmpl-<turn id without dashes> */
static void chat_id(const struct turn_view *v, char out[CHAT_ID_SIZE])
{
    size_t n = (size_t)snprintf(out, CHAT_ID_SIZE, "chatcmpl-");
    for (const char *p = v->turn_id; *p && n < CHAT_ID_SIZE - 1; p++)
        if (*p != '-')
            out[n++] = *p;
    out[n] = '\0';
}

static void put_head(const struct turn_view *v, const char *object, struct buf *out)
{
    char id[CHAT_ID_SIZE];
    chat_id(v, id);
    buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", id,
               object, (long long)(v->created_us / 1000000));
    json_put_string(out, v->model, strlen(v->model));
}

static void chunk_begin(const struct turn_view *v, struct buf *out)
{
    sse_put_begin(out, NULL, NULL);
    put_head(v, "chat.completion.chunk", out);
}

static void put_usage(struct buf *out, const struct record_usage *u)
{
    int64_t prompt = u->prompt_tokens < 0 ? 0 : u->prompt_tokens;
    int64_t completion = u->completion_tokens < 0 ? 0 : u->completion_tokens;
    int64_t total = u->total_tokens < 0 ? prompt + completion : u->total_tokens;
    buf_printf(out,
               "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,"
               "\"total_tokens\":%lld}",
               (long long)prompt, (long long)completion, (long long)total);
}

/* --- the stream --------------------------------------------------------------------- */

static void chat_first(const struct turn_view *v, const struct member *m,
                       struct position at, struct buf *out)
{
    (void)m;
    (void)at;
    chunk_begin(v, out);
    buf_puts(out, ",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\","
                  "\"content\":\"\"},\"finish_reason\":null}]}");
    sse_put_end(out);
}

static void put_delta(const struct turn_view *v, const char *name, bool text,
                      const void *payload, size_t n, struct buf *out)
{
    chunk_begin(v, out);
    buf_printf(out, ",\"choices\":[{\"index\":0,\"delta\":{\"%s\":", name);
    if (text)
        json_put_string(out, payload, n);
    else
        buf_append(out, payload, n);
    buf_puts(out, "},\"finish_reason\":null}]}");
    sse_put_end(out);
}

static void put_error(struct buf *out, const char *code, const char *message)
{
    sse_put_begin(out, NULL, NULL);
    buf_puts(out, "{\"error\":{\"message\":");
    json_put_string(out, message, strlen(message));
    buf_puts(out, ",\"type\":\"upstream_error\",\"param\":null,\"code\":");
    json_put_string(out, code, strlen(code));
    buf_puts(out, "}}");
    sse_put_end(out);
}

static void chat_record(const struct turn_view *v, enum record_type type,
                        const void *payload, size_t n, struct position at,
                        struct buf *out)
{
    (void)at;
    if (type == RECORD_DELTA) {
        put_delta(v, "content", true, payload, n, out);
    } else if (type == RECORD_REASONING) {
        put_delta(v, "reasoning_content", true, payload, n, out);
    } else if (type == RECORD_TOOL) {
        put_delta(v, "tool_calls", false, payload, n, out);
    } else if (type == RECORD_CITATIONS) {
        chunk_begin(v, out);
        buf_puts(out, ",\"choices\":[],\"citations\":");
        buf_append(out, payload, n);
        buf_putc(out, '}');
        sse_put_end(out);
    }
}

/* finish_reason goes out at once, [DONE] after the commit. */
static bool chat_end(const struct turn_view *v, const struct member *m,
                     struct position at, struct buf *out)
{
    (void)at;
    if (v->end.status != TURN_COMPLETE) {
        put_error(out, v->end.code[0] ? v->end.code : "cancelled",
                  v->end.message[0] ? v->end.message : "the turn was cancelled");
        return true;
    }
    if (!m->first_sent)
        chat_first(v, m, at, out);
    chunk_begin(v, out);
    buf_puts(out, ",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":");
    json_put_string(out, v->end.finish_reason, strlen(v->end.finish_reason));
    buf_puts(out, "}]}");
    sse_put_end(out);
    if (m->include_usage) {
        chunk_begin(v, out);
        buf_puts(out, ",\"choices\":[],");
        put_usage(out, &v->usage);
        buf_putc(out, '}');
        sse_put_end(out);
    }
    return false;
}

static void chat_done(const struct turn_view *v, const struct member *m,
                      struct position at, struct buf *out)
{
    (void)m;
    (void)at;
    if (v->stored == STORED_NO || v->stored == STORED_FAILED)
        put_error(out, "not_stored", "the answer is whole but could not be stored");
    else
        buf_puts(out, "data: [DONE]\n\n");
}

static void chat_comment(struct buf *out)
{
    sse_put_comment(out, "ping");
}

/* --- refusals and whole answers ----------------------------------------------------- */

static void respond_failure(const struct turn_view *v, struct member *m, int status)
{
    struct http_problem p = {.status = status,
                             .code = v->end.code,
                             .offset = -1,
                             .retry_after_ms = v->end.retry_after_ms,
                             .retryable = v->end.retryable};
    http_respond_problem(m->ex, &p, "%s", v->end.message);
}

static void chat_reject(const struct turn_view *v, struct member *m)
{
    int status = (int)v->end.http_status;
    respond_failure(v, m, status >= 400 && status < 600 ? status : 502);
}

static void put_completion(struct buf *b, const struct turn_view *v,
                           const struct turn_result *r)
{
    put_head(v, "chat.completion", b);
    buf_puts(b, ",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                "\"content\":");
    if (r->text.len == 0 && r->tools.len > 0)
        buf_puts(b, "null");
    else
        json_put_string(b, r->text.data ? r->text.data : "", r->text.len);
    buf_puts(b, ",\"refusal\":null");
    if (r->reasoning.len > 0) {
        buf_puts(b, ",\"reasoning_content\":");
        json_put_string(b, r->reasoning.data, r->reasoning.len);
    }
    if (r->tools.len > 0) {
        buf_puts(b, ",\"tool_calls\":");
        buf_append(b, r->tools.data, r->tools.len);
    }
    buf_puts(b, "},\"logprobs\":null,\"finish_reason\":");
    json_put_string(b, r->end.finish_reason, strlen(r->end.finish_reason));
    buf_puts(b, "}],");
    put_usage(b, &r->usage);
    if (r->citations.len > 0) {
        buf_puts(b, ",\"citations\":");
        buf_append(b, r->citations.data, r->citations.len);
    }
    buf_putc(b, '}');
}

static void chat_answer(const struct turn_view *v, struct member *m,
                        const struct turn_result *r)
{
    struct buf b = BUF_INIT(ANSWER_MAX);

    if (v->end.status == TURN_INCOMPLETE) {
        respond_failure(v, m, 502);
    } else if (v->end.status == TURN_CANCELLED) {
        struct http_problem p = {.status = 409, .code = "cancelled", .offset = -1};
        http_respond_problem(m->ex, &p, "the turn was cancelled");
    } else if (v->stored == STORED_NO || v->stored == STORED_FAILED) {
        bool later = v->stored == STORED_NO;
        struct http_problem p = {.status = later ? 503 : 500,
                                 .code = "not_stored",
                                 .offset = -1,
                                 .retry_after_ms = later ? 1000 : 0,
                                 .retryable = later};
        http_respond_problem(m->ex, &p, "the answer is whole but could not be stored");
    } else {
        put_completion(&b, v, r);
        native_respond(m->ex, 200, &b);
    }
}

static const struct dialect chat_stream = {
    .name = "chat stream",
    .stream = true,
    .first_at_reasoning = true,
    .content_type = "text/event-stream",
    .first = chat_first,
    .record = chat_record,
    .end = chat_end,
    .done = chat_done,
    .comment = chat_comment,
    .reject = chat_reject,
};

static const struct dialect chat_json = {
    .name = "chat json", .reject = chat_reject, .answer = chat_answer};

/* --- the request -------------------------------------------------------------------- */

/* Members that are not the provider's business, or that DAC sets itself. */
static const char *const own_members[] = {"messages",
                                          "model",
                                          "provider",
                                          "stream",
                                          "stream_options",
                                          "n",
                                          "user",
                                          "store",
                                          "metadata",
                                          "system",
                                          "safety_identifier",
                                          "abandon_grace_ms",
                                          "prompt_cache_key",
                                          NULL};

static bool is_own(const char *name)
{
    for (const char *const *p = own_members; *p; p++)
        if (strcmp(*p, name) == 0)
            return true;
    return false;
}

/* The text of a message's content: a string, or the text parts of an array. */
static bool content_text(struct json_object *content, struct buf *out)
{
    if (json_object_is_type(content, json_type_string))
        return buf_append(out, json_object_get_string(content),
                          (size_t)json_object_get_string_len(content)) == DAC_OK;
    if (!json_object_is_type(content, json_type_array))
        return content == NULL;
    for (size_t i = 0; i < json_object_array_length(content); i++) {
        struct json_object *text =
            json_object_object_get(json_object_array_get_idx(content, i), "text");
        if (json_object_is_type(text, json_type_string) &&
            buf_append(out, json_object_get_string(text),
                       (size_t)json_object_get_string_len(text)) != DAC_OK)
            return false;
    }
    return true;
}

static bool check_message(struct http_exchange *ex, struct json_object *m, size_t i)
{
    static const char *const roles[] = {"system",    "developer", "user",
                                        "assistant", "tool",      "function"};
    const char *role = json_object_get_string(json_object_object_get(m, "role"));
    char field[48];

    snprintf(field, sizeof field, "messages[%zu]", i);
    if (!json_object_is_type(m, json_type_object)) {
        input_refuse(ex, 400, "bad_field", field, "%s must be an object", field);
        return false;
    }
    for (size_t k = 0; role && k < DAC_ARRAY_LEN(roles); k++)
        if (strcmp(role, roles[k]) == 0)
            return true;
    snprintf(field, sizeof field, "messages[%zu].role", i);
    input_refuse(ex, 400, "bad_field", field,
                 "%s must be system, developer, user, assistant or tool", field);
    return false;
}

/* Checks the messages; the last user message is what is stored as the question. */
static bool take_messages(struct http_exchange *ex, struct json_object *body,
                          struct turn_request *r)
{
    struct json_object *all = json_object_object_get(body, "messages");
    size_t n =
        json_object_is_type(all, json_type_array) ? json_object_array_length(all) : 0;

    if (n == 0) {
        input_refuse(ex, 400, "missing_field", "messages",
                     "messages must be an array of at least one message");
        return false;
    }
    struct json_object *last = NULL;
    for (size_t i = 0; i < n; i++) {
        struct json_object *m = json_object_array_get_idx(all, i);
        if (!check_message(ex, m, i))
            return false;
        if (strcmp(json_object_get_string(json_object_object_get(m, "role")), "user") ==
            0)
            last = m;
    }
    r->messages = json_object_get(all);
    if (last && !content_text(json_object_object_get(last, "content"), &r->content)) {
        if (r->content.failed)
            http_respond_no_memory(ex);
        else
            input_refuse(ex, 400, "bad_field", "messages",
                         "content of a message must be a string or an array of parts");
        return false;
    }
    return true;
}

static bool take_params(struct http_exchange *ex, struct json_object *body,
                        struct turn_request *r)
{
    r->params = json_object_new_object();
    if (!r->params) {
        http_respond_no_memory(ex);
        return false;
    }
    json_object_object_foreach(body, name, value)
    {
        if (is_own(name) || !value)
            continue;
        if (json_object_object_add(r->params, name, json_object_get(value)) != 0) {
            json_object_put(value);
            http_respond_no_memory(ex);
            return false;
        }
    }
    return true;
}

static bool take_options(struct api *api, struct http_exchange *ex,
                         struct json_object *body, struct ask *ask, bool *stream)
{
    struct json_object *opt = json_object_object_get(body, "stream_options");
    double n = 1, grace = 0;
    bool present;

    if (!input_bool(ex, body, "stream", stream) ||
        !input_number(ex, body, "n", 1, 1, true, &present, &n) ||
        !input_number(ex, body, "abandon_grace_ms", 0,
                      (double)(api->config->abandon_grace_max_ns / NS_PER_MS), true,
                      &present, &grace))
        return false;
    if (present)
        ask->abandon_grace_ns = (uint64_t)grace * NS_PER_MS;
    if (opt && !json_object_is_type(opt, json_type_object)) {
        input_refuse(ex, 400, "bad_field", "stream_options",
                     "stream_options must be an object");
        return false;
    }
    return !opt || input_bool(ex, opt, "include_usage", &ask->include_usage);
}

static bool has_tools(struct json_object *body)
{
    static const char *const names[] = {"tools", "functions"};
    for (size_t i = 0; i < DAC_ARRAY_LEN(names); i++) {
        struct json_object *v = json_object_object_get(body, names[i]);
        if (v && !(json_object_is_type(v, json_type_array) &&
                   json_object_array_length(v) == 0))
            return true;
    }
    return false;
}

static bool fill_ask(struct api *api, struct http_exchange *ex, struct json_object *body,
                     struct ask *ask)
{
    const char *model, *provider;
    bool stream = false;

    if (!input_org(ex, ask->request.org) ||
        !input_key(ex, &ask->request.thread_id, body, &ask->key) ||
        !input_string(ex, body, "model", MODEL_MAX, &model, NULL) ||
        !input_string(ex, body, "provider", INPUT_NAME_MAX, &provider, NULL) ||
        !take_options(api, ex, body, ask, &stream) ||
        !take_messages(ex, body, &ask->request) ||
        !take_params(ex, body, &ask->request) ||
        !input_provider(api, ex, provider, model, ask))
        return false;
    ask->dialect = stream ? &chat_stream : &chat_json;
    ask->result_ttl_ns = api->config->chat_result_ttl_ns;
    ask->request.user_message_id = id_new();
    ask->request.assistant_message_id = id_new();
    input_sharing(api, ex, stream, has_tools(body), ask);
    return true;
}

void api_chat_completions(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    struct ask ask = {.ex = ex, .kind = FLIGHT_TURN};
    struct json_object *body;

    if (!input_object(ex, false, &body))
        return;
    turn_request_init(&ask.request);
    if (fill_ask(api, ex, body, &ask))
        flights_ask(api->flights, &ask);
    turn_request_free(&ask.request);
    json_object_put(body);
}

void api_models(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    struct buf b = BUF_INIT(1u << 20);
    bool first = true;

    buf_puts(&b, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < api->config->provider_count; i++) {
        const struct config_provider *p = &api->config->providers[i];
        for (size_t k = 0; k < p->models.count; k++) {
            const char *name = p->models.items[k];
            if (strpbrk(name, "*?["))
                continue; /* a pattern is no model that one could ask for */
            buf_printf(&b, "%s{\"id\":", first ? "" : ",");
            json_put_string(&b, name, strlen(name));
            buf_puts(&b, ",\"object\":\"model\",\"created\":0,\"owned_by\":");
            json_put_string(&b, p->name, strlen(p->name));
            buf_putc(&b, '}');
            first = false;
        }
    }
    buf_puts(&b, "]}");
    native_respond(ex, 200, &b);
}
