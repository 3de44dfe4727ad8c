/*
 * Asking in a thread: POST /api/threads/{id}/messages and …/messages/stream.
 *
 * Order: the body is checked whole, the thread is looked up, then the question joins or
 * leads a flight.
 */
#include <stdlib.h>
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/read.h"
#include "api/routes.h"
#include "base/clock.h"

#define CONTENT_MAX (16u << 20)

static const char *const known[] = {
    "role",  "content", "provider", "model",          "stream",           "temperature",
    "top_p", "system",  "tools",    "parent_turn_id", "abandon_grace_ms", "max_tokens",
    NULL};

static bool take_content(struct http_exchange *ex, struct json_object *body,
                         struct turn_request *r)
{
    const char *role, *content, *system;
    size_t n, system_n;

    if (!input_string(ex, body, "role", 32, &role, NULL) ||
        !input_string(ex, body, "content", CONTENT_MAX, &content, &n) ||
        !input_string(ex, body, "system", CONTENT_MAX, &system, &system_n))
        return false;
    if (role && strcmp(role, "user") != 0) {
        input_refuse(ex, 400, "bad_field", "role", "role must be \"user\"");
        return false;
    }
    if (!content || n == 0) {
        input_refuse(ex, 400, "missing_field", "content",
                     "content is required: a string that is not empty");
        return false;
    }
    buf_append(&r->content, content, n);
    if (system)
        buf_append(&r->system, system, system_n);
    if (r->content.failed || r->system.failed) {
        http_respond_no_memory(ex);
        return false;
    }
    return true;
}

/* Hands a member of the body on. */
static bool add_param(struct http_exchange *ex, struct json_object *params,
                      const char *name, struct json_object *v)
{
    if (json_object_object_add(params, name, json_object_get(v)) == 0)
        return true;
    json_object_put(v);
    http_respond_no_memory(ex);
    return false;
}

static bool add_number(struct http_exchange *ex, struct json_object *body,
                       const char *name, double min, double max, bool integer,
                       struct json_object *params)
{
    bool present;
    double v;

    if (!input_number(ex, body, name, min, max, integer, &present, &v))
        return false;
    return !present || add_param(ex, params, name, json_object_object_get(body, name));
}

static bool take_params(struct http_exchange *ex, struct json_object *body,
                        struct turn_request *r, bool *tools)
{
    struct json_object *list = json_object_object_get(body, "tools");

    r->params = json_object_new_object();
    if (!r->params) {
        http_respond_no_memory(ex);
        return false;
    }
    if (!add_number(ex, body, "temperature", 0, 2, false, r->params) ||
        !add_number(ex, body, "top_p", 0, 1, false, r->params) ||
        !add_number(ex, body, "max_tokens", 1, 1e9, true, r->params))
        return false;
    if (list && !json_object_is_type(list, json_type_array)) {
        input_refuse(ex, 400, "bad_field", "tools", "tools must be an array");
        return false;
    }
    *tools = list && json_object_array_length(list) > 0;
    return !*tools || add_param(ex, r->params, "tools", list);
}

static bool take_parent(struct http_exchange *ex, struct json_object *body,
                        struct ask *ask)
{
    const char *parent;
    struct id id;
    size_t n;

    if (!input_string(ex, body, "parent_turn_id", 64, &parent, &n))
        return false;
    if (!parent)
        return true;
    if (!id_parse(parent, n, &id)) {
        input_refuse(ex, 400, "bad_field", "parent_turn_id",
                     "parent_turn_id must be the id of a turn");
        return false;
    }
    id_format(&id, ask->parent);
    return true;
}

static bool take_grace(struct api *api, struct http_exchange *ex,
                       struct json_object *body, struct ask *ask)
{
    double max = (double)(api->config->abandon_grace_max_ns / NS_PER_MS);
    bool present;
    double ms;

    if (!input_number(ex, body, "abandon_grace_ms", 0, max, true, &present, &ms))
        return false;
    if (present)
        ask->abandon_grace_ns = (uint64_t)ms * NS_PER_MS;
    return true;
}

static bool fill_ask(struct api *api, struct http_exchange *ex, struct json_object *body,
                     bool stream, struct ask *ask)
{
    const char *provider, *model;
    bool asked = false;
    bool tools;

    if (!input_known(ex, body, known) || !input_org(ex, ask->request.org) ||
        !input_key(ex, &ask->request.thread_id, body, &ask->key) ||
        !take_content(ex, body, &ask->request) ||
        !input_bool(ex, body, "stream", &asked) ||
        !input_string(ex, body, "provider", INPUT_NAME_MAX, &provider, NULL) ||
        !input_string(ex, body, "model", MODEL_MAX, &model, NULL) ||
        !take_params(ex, body, &ask->request, &tools) || !take_parent(ex, body, ask) ||
        !take_grace(api, ex, body, ask) || !input_provider(api, ex, provider, model, ask))
        return false;
    stream = stream || asked;
    ask->dialect = stream ? &native_stream : &native_json;
    ask->result_ttl_ns = api->config->result_ttl_ns;
    ask->request.user_message_id = id_new();
    ask->request.assistant_message_id = id_new();
    input_sharing(api, ex, stream, tools, ask);
    return true;
}

static void on_thread(void *arg, enum dac_err e, const struct store_thread *t)
{
    struct read *rd = arg;
    struct api *api = rd->api;
    struct ask *ask = rd->ask;

    rd->ask = NULL;
    ask->store_ns += clock_now_ns() - rd->started_ns;
    if (e == DAC_OK)
        ask->request.last_turn_id = t->last_turn_id;
    ask->ex = read_done(rd);
    if (e == DAC_OK)
        flights_ask(api->flights, ask);
    else
        read_refuse(ask->ex, e, "thread");
    ask_free(ask);
}

/* The thread is looked up before the question may join anything. */
static void look_up_thread(struct api *api, struct http_exchange *ex, struct ask *ask)
{
    struct read *rd = read_new(api, ex);

    if (!rd) {
        ask_free(ask);
        return;
    }
    rd->ask = ask;
    read_started(rd, store_read_thread(api->reader, ask->request.org,
                                       &ask->request.thread_id, on_thread, rd));
}

static void ask_in_thread(struct http_exchange *ex, struct api *api, bool stream)
{
    struct json_object *body;
    struct id thread;

    if (!input_path_id(ex, 0, "thread", &thread) || !input_object(ex, false, &body))
        return;
    struct ask *ask = calloc(1, sizeof *ask);
    if (!ask) {
        http_respond_no_memory(ex);
    } else {
        ask->kind = FLIGHT_TURN;
        turn_request_init(&ask->request);
        ask->request.thread_id = thread;
        if (fill_ask(api, ex, body, stream, ask)) {
            look_up_thread(api, ex, ask);
        } else {
            ask_free(ask);
        }
    }
    json_object_put(body);
}

void api_ask(struct http_exchange *ex, void *ctx)
{
    ask_in_thread(ex, ctx, http_header_has_token(ex, "Accept", "text/event-stream"));
}

/* This route always streams, whatever the body says. */
void api_ask_stream(struct http_exchange *ex, void *ctx)
{
    ask_in_thread(ex, ctx, true);
}
