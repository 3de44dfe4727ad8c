/*
 * Reads a flight's log into one struct. Tool calls come in pieces, as the provider
 * streamed them; they are merged by their index the way the OpenAI clients do it.
 */
#include "flight/result.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define RESULT_MAX (64u << 20)

static struct json_object *tool_slot(struct json_object *all, size_t index)
{
    while (json_object_array_length(all) <= index) {
        struct json_object *o = json_object_new_object();
        if (!o || json_object_array_add(all, o) != 0) {
            json_object_put(o);
            return NULL;
        }
    }
    return json_object_array_get_idx(all, index);
}

/* Sets a member; takes `v`, and frees it where there is no memory for it. */
static bool set_member(struct json_object *to, const char *name, struct json_object *v)
{
    if (v && json_object_object_add(to, name, v) == 0)
        return true;
    json_object_put(v);
    return false;
}

static bool add_text(struct json_object *to, const char *name, struct json_object *piece)
{
    struct json_object *old = json_object_object_get(to, name);
    size_t a = old ? (size_t)json_object_get_string_len(old) : 0;
    size_t b = (size_t)json_object_get_string_len(piece);
    char *joined = malloc(a + b + 1);

    if (!joined)
        return false;
    if (old)
        memcpy(joined, json_object_get_string(old), a);
    memcpy(joined + a, json_object_get_string(piece), b);
    bool ok = set_member(to, name, json_object_new_string_len(joined, (int)(a + b)));
    free(joined);
    return ok;
}

/* Appends the strings of a `function`. */
static bool merge_function(struct json_object *to, const char *name,
                           struct json_object *piece)
{
    struct json_object *f = json_object_object_get(to, name);

    if (!f) {
        f = json_object_new_object();
        if (!set_member(to, name, f))
            return false;
    }
    json_object_object_foreach(piece, part, text)
    {
        if (json_object_is_type(text, json_type_string) && !add_text(f, part, text))
            return false;
    }
    return true;
}

/* Takes one streamed element: strings of `function` are appended, other members are set.
 * False: no memory. */
static bool merge_tool(struct json_object *all, struct json_object *piece)
{
    if (!json_object_is_type(piece, json_type_object))
        return true; /* what the provider sent was checked to be JSON, no more */
    int64_t index = json_object_get_int64(json_object_object_get(piece, "index"));
    if (index < 0 || index > 127)
        return true;
    struct json_object *to = tool_slot(all, (size_t)index);
    if (!to)
        return false;
    json_object_object_foreach(piece, name, value)
    {
        if (strcmp(name, "index") == 0 || !value)
            continue;
        bool ok = true;
        if (strcmp(name, "function") != 0)
            ok = set_member(to, name, json_object_get(value));
        else if (json_object_is_type(value, json_type_object))
            ok = merge_function(to, name, value);
        if (!ok)
            return false;
    }
    return true;
}

struct reading {
    struct turn_result *out;
    struct json_object *tools;
    char *scratch;
    size_t scratch_size;
};

static enum dac_err take_tools(struct reading *rd, const void *payload, size_t n)
{
    struct json_error why;
    struct json_object *pieces;
    enum dac_err e = json_parse_strict(payload, n, &pieces, &why);

    if (e == DAC_E_NOMEM)
        return e;
    if (e != DAC_OK)
        return DAC_E_CORRUPT;
    if (!rd->tools)
        rd->tools = json_object_new_array();
    bool ok = rd->tools != NULL;
    if (ok && json_object_is_type(pieces, json_type_array))
        for (size_t i = 0; ok && i < json_object_array_length(pieces); i++)
            ok = merge_tool(rd->tools, json_object_array_get_idx(pieces, i));
    json_object_put(pieces);
    return ok ? DAC_OK : DAC_E_NOMEM;
}

static enum dac_err fixed(void *to, size_t size, const void *payload, size_t n)
{
    if (n != size)
        return DAC_E_CORRUPT;
    memcpy(to, payload, size);
    return DAC_OK;
}

static void forget_answer(struct reading *rd)
{
    buf_reset(&rd->out->text);
    buf_reset(&rd->out->reasoning);
    buf_reset(&rd->out->citations);
    rd->out->usage = (struct record_usage){-1, -1, -1};
    json_object_put(rd->tools);
    rd->tools = NULL;
}

static enum dac_err take_record(struct reading *rd, const struct blocklog_record *r,
                                const void *payload)
{
    struct turn_result *out = rd->out;
    enum dac_err e;

    out->generation = r->generation;
    switch (r->type) {
    case RECORD_REQUEST:
        if (out->has_request)
            return DAC_E_CORRUPT;
        e = turn_request_parse(payload, r->len, &out->request);
        out->has_request = e == DAC_OK;
        return e;
    case RECORD_THREAD:
        if (out->has_thread)
            return DAC_E_CORRUPT;
        e = thread_request_parse(payload, r->len, &out->thread);
        out->has_thread = e == DAC_OK;
        return e;
    case RECORD_DELTA:
        return buf_append(&out->text, payload, r->len);
    case RECORD_REASONING:
        return buf_append(&out->reasoning, payload, r->len);
    case RECORD_TOOL:
        return take_tools(rd, payload, r->len);
    case RECORD_CITATIONS:
        buf_reset(&out->citations);
        return buf_append(&out->citations, payload, r->len);
    case RECORD_USAGE:
        return fixed(&out->usage, sizeof out->usage, payload, r->len);
    case RECORD_RESET:
        forget_answer(rd);
        return DAC_OK;
    case RECORD_END:
        out->ended = true;
        return fixed(&out->end, sizeof out->end, payload, r->len);
    }
    return DAC_E_CORRUPT;
}

static bool scratch_for(struct reading *rd, size_t n)
{
    if (n <= rd->scratch_size)
        return true;
    char *p = realloc(rd->scratch, n);
    if (!p)
        return false;
    rd->scratch = p;
    rd->scratch_size = n;
    return true;
}

enum dac_err turn_result_read(const struct shm *shm, struct flight_ref ref,
                              struct turn_result *out)
{
    struct reading rd = {.out = out};
    struct blocklog_cursor c;
    struct blocklog_record r;
    enum dac_err e;

    memset(out, 0, sizeof *out);
    turn_request_init(&out->request);
    out->text.max = out->reasoning.max = out->citations.max = out->tools.max = RESULT_MAX;
    out->usage = (struct record_usage){-1, -1, -1};
    blocklog_rewind(&c, ref);
    while ((e = blocklog_peek(shm, &c, &r)) == DAC_OK) {
        if (!scratch_for(&rd, r.len)) {
            e = DAC_E_NOMEM;
            break;
        }
        e = take_record(&rd, &r, blocklog_payload(shm, &c, &r, rd.scratch));
        if (e != DAC_OK)
            break;
        blocklog_next(shm, &c, &r);
    }
    if (e == DAC_E_AGAIN)
        e = DAC_OK;
    if (e == DAC_OK && rd.tools)
        json_put_object(&out->tools, rd.tools);
    if (out->tools.failed)
        e = DAC_E_NOMEM;
    json_object_put(rd.tools);
    free(rd.scratch);
    out->end.finish_reason[sizeof out->end.finish_reason - 1] = '\0';
    out->end.code[sizeof out->end.code - 1] = '\0';
    out->end.message[sizeof out->end.message - 1] = '\0';
    return e;
}

void turn_result_free(struct turn_result *r)
{
    turn_request_free(&r->request);
    thread_request_free(&r->thread);
    buf_free(&r->text);
    buf_free(&r->reasoning);
    buf_free(&r->citations);
    buf_free(&r->tools);
}

static double ms_between(uint64_t from, uint64_t to)
{
    if (from == 0 || to < from)
        return -1;
    return (double)(to - from) / (double)NS_PER_MS;
}

struct turn_timing turn_timing(const struct shm *shm, uint32_t flight)
{
    const struct shm_flight *f = flight_at(shm, flight);
    uint64_t arrived = atomic_load_explicit(&f->arrived_ns, memory_order_relaxed);
    uint64_t called = atomic_load_explicit(&f->called_ns, memory_order_relaxed);

    return (struct turn_timing){
        .ttft_ms = ms_between(
            arrived, atomic_load_explicit(&f->first_token_ns, memory_order_relaxed)),
        .latency_ms =
            ms_between(arrived, atomic_load_explicit(&f->ended_ns, memory_order_relaxed)),
        .queue_wait_ms =
            ms_between(atomic_load_explicit(&f->queued_ns, memory_order_relaxed),
                       atomic_load_explicit(&f->fetch_ns, memory_order_relaxed)),
        .own_ms = (double)atomic_load_explicit(&f->own_ns, memory_order_relaxed) /
                  (double)NS_PER_MS,
        .call_ms = ms_between(
            called, atomic_load_explicit(&f->answered_ns, memory_order_relaxed)),
        .call_ttft_ms = ms_between(
            called, atomic_load_explicit(&f->first_token_ns, memory_order_relaxed)),
    };
}

enum flight_stored turn_stored_at(enum store_place place)
{
    static const enum flight_stored words[] = {[STORE_IN_SQLITE] = STORED_SQLITE,
                                               [STORE_IN_POSTGRES] = STORED_POSTGRES,
                                               [STORE_IN_SPOOL] = STORED_SPOOL};

    return words[place];
}
