/*
 * Checking what clients send: every refusal names the field and the fix. Each function
 * that returns false has answered the exchange, which is over then.
 */
#ifndef DAC_API_INPUT_H
#define DAC_API_INPUT_H

#include "api/api.h"
#include "base/json.h"
#include "flight/ask.h"
#include "http/problem.h"

/* Longest name of a provider that is looked up; whoever sends more is refused for that.
 */
#define INPUT_NAME_MAX 256

/* Answers 400 bad_request, or another status, about one field. */
void input_refuse(struct http_exchange *ex, int status, const char *code,
                  const char *field, const char *fmt, ...) DAC_PRINTF(5, 6);

/* The org: header x-org-id, "default" where it is absent. */
bool input_org(struct http_exchange *ex, char org[ORG_MAX + 1]);
/* For a request's line in the log, what its head says: the org, and the turn that its
 * path names. The server's hook. */
void input_describe(struct http_exchange *ex, void *ctx, struct http_report *out);
/* Header Idempotency-Key: what it and the request with it (of this thread; zero:
 * stateless chat) are known by. Without it out->given is false. */
bool input_key(struct http_exchange *ex, const struct id *thread,
               struct json_object *body, struct ask_key *out);
/* The body as a JSON object; a new reference. An empty body is {} if `empty_ok`. */
bool input_object(struct http_exchange *ex, bool empty_ok, struct json_object **out);
/* Refuses members that are not in `names` (NULL-terminated). */
bool input_known(struct http_exchange *ex, struct json_object *o,
                 const char *const *names);
/* An optional string; absent: *out stays NULL. */
bool input_string(struct http_exchange *ex, struct json_object *o, const char *name,
                  size_t max, const char **out, size_t *len);
bool input_bool(struct http_exchange *ex, struct json_object *o, const char *name,
                bool *out);
bool input_number(struct http_exchange *ex, struct json_object *o, const char *name,
                  double min, double max, bool integer, bool *present, double *out);
/* The i-th path argument as an id; else 404. */
bool input_path_id(struct http_exchange *ex, size_t i, const char *what, struct id *out);
/* Query parameter `limit` (1 to max, default def) and `after` (an id, default zero). */
bool input_page(struct http_exchange *ex, size_t def, size_t max, size_t *limit,
                struct id *after);

/* Fills provider, model and ask->provider from the request's wishes (either may be NULL).
 * Unknown: 400 or 404 that lists what is configured; none configured: 503. */
bool input_provider(struct api *api, struct http_exchange *ex, const char *provider,
                    const char *model, struct ask *ask);
/* Cache-Control, the flags, tools, the client's grace: how this question may be shared.
 */
void input_sharing(struct api *api, struct http_exchange *ex, bool stream, bool tools,
                   struct ask *ask);

#endif
