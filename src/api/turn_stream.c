/*
 * GET /api/turns/{id}/stream: attaches to a turn, or goes on from where a client was cut
 * off (Last-Event-ID, or ?from=), from memory or, when the turn has left it, from the
 * store.
 */
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/read.h"
#include "api/routes.h"
#include "flight/replay.h"

static bool parse_from(const char *text, struct resume_from *out)
{
    const char *dash = strchr(text, '-');
    const char *bytes = dash ? dash + 1 : text;
    uint64_t generation = 0;

    memset(out, 0, sizeof *out);
    if (dash && !bytes_parse_u64(text, (size_t)(dash - text), UINT16_MAX, &generation))
        return false;
    out->has_generation = dash != NULL;
    out->generation = (uint16_t)generation;
    return bytes_parse_u64(bytes, strlen(bytes), UINT64_MAX / 2, &out->text_bytes);
}

static bool take_from(struct http_exchange *ex, struct resume_from *out)
{
    const char *header = http_header(ex, "Last-Event-ID");
    const char *query = http_query(ex, "from");
    const char *text = header ? header : query;

    memset(out, 0, sizeof *out);
    if (!text || parse_from(text, out))
        return true;
    input_refuse(ex, 400, "bad_position", header ? "Last-Event-ID" : "from",
                 "%s must be an event's id, such as 0-512, or a number of bytes",
                 header ? "Last-Event-ID" : "from");
    return false;
}

static void refuse_position(struct http_exchange *ex)
{
    input_refuse(ex, 416, "position_beyond_end", NULL,
                 "the answer has not so many bytes; ask without a position");
}

/* --- from the store ----------------------------------------------------------------- */

static void on_turn(void *arg, enum dac_err e, const struct store_turn *t)
{
    struct read *rd = arg;
    struct resume_from from = rd->from;
    struct http_exchange *ex = read_done(rd);
    struct replay rp = {.dialect = &native_stream,
                        .turn = t,
                        .cache_status = "dac; hit; detail=store",
                        .from = &from};

    if (e != DAC_OK)
        read_refuse(ex, e, "turn");
    else if (replay_is_beyond(t, &from))
        refuse_position(ex);
    else
        replay_turn(ex, &rp);
}

void api_turn_stream(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    char org[ORG_MAX + 1];
    struct resume_from from;
    struct id id;

    if (!input_org(ex, org) || !input_path_id(ex, 0, "turn", &id) ||
        !take_from(ex, &from))
        return;
    enum dac_err e = flights_resume(api->flights, &id, org, &native_stream, &from, ex);
    if (e == DAC_E_NOT_FOUND) {
        struct read *rd = read_new(api, ex);
        if (!rd)
            return;
        rd->from = from;
        read_started(rd, store_read_turn(api->reader, org, &id, on_turn, rd));
    } else if (e == DAC_E_TOO_LARGE) {
        refuse_position(ex);
    } else if (e != DAC_OK) {
        read_refuse(ex, e, "turn");
    }
}
