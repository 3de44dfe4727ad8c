/*
 * /livez: this process answers. /readyz: the instance can take a question and keep its
 * answer.
 */
#include "api/native.h"
#include "api/routes.h"
#include "http/problem.h"
#include "shm/slot.h"

void api_livez(struct http_exchange *ex, void *ctx)
{
    static const char body[] = "{\"status\":\"ok\"}";
    (void)ctx;
    http_respond(ex, 200, "application/json", body, sizeof body - 1);
}

void api_readyz(struct http_exchange *ex, void *ctx)
{
    static const char body[] = "{\"status\":\"ready\"}";
    struct api *api = ctx;
    const struct shm_header *h = api->shm->hdr;
    uint32_t recorder = atomic_load(&h->recorder_slot);
    struct http_problem p = {
        .status = 503, .offset = -1, .retryable = true, .retry_after_ms = 1000};

    if (atomic_load(&h->draining)) {
        p.code = "draining";
        http_respond_problem(ex, &p, "the instance is stopping");
    } else if (slot_state(api->shm, recorder) != SLOT_READY) {
        p.code = "recorder_down";
        http_respond_problem(ex, &p,
                             "the recorder is not running: nothing can be stored");
    } else if (atomic_load(&h->store.spool_full)) {
        p.code = "spool_full";
        http_respond_problem(ex, &p, "the database is away and the spool is full");
    } else if (api->config->provider_count == 0) {
        p.code = "no_provider";
        http_respond_problem(ex, &p, "no provider is configured");
    } else {
        http_respond(ex, 200, "application/json", body, sizeof body - 1);
    }
}
