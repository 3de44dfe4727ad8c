/*
 * The key of a question: SHA-256 (FIPS 180-4) over length-prefixed fields, so that no two
 * different sequences of fields give the same bytes.
 */
#ifndef DAC_FLIGHT_KEY_H
#define DAC_FLIGHT_KEY_H

#include "flight/request.h"
#include "shm/layout.h"

/* Before any other of these, once per process: finds the digest. DAC_E_NOMEM. */
enum dac_err key_init(void) DAC_CHECK;
/* The key of `r`: org, scope (the thread, or "chat"), provider, model, all parameters,
 * the system prompt, `parent` (NULL: none) and the last user message or, for stateless
 * chat, the canonical messages. Object members count in sorted order, so their order in
 * the request does not matter. DAC_E_NOMEM. */
enum dac_err key_of_request(const struct turn_request *r, const char *parent,
                            uint8_t out[SHM_KEY_SIZE]) DAC_CHECK;
/* The same of what was asked, whatever parameters came with it: org, scope, and the last
 * user message or the messages; the first half of the digest, never 0. For figures only.
 * DAC_E_NOMEM. */
enum dac_err key_of_question(const struct turn_request *r, uint64_t *out) DAC_CHECK;
/* A key that only the turn with this id has: for flights that are never joined.
 * DAC_E_NOMEM. */
enum dac_err key_private(const struct id *turn, uint8_t out[SHM_KEY_SIZE]) DAC_CHECK;
/* The first half of SHA-256 of the org's name. DAC_E_NOMEM. */
enum dac_err key_org(const char *org, uint8_t out[16]) DAC_CHECK;

/* What an Idempotency-Key header is looked for by: SHA-256 of its value. DAC_E_NOMEM. */
enum dac_err key_of_header(const char *value, uint8_t out[32]) DAC_CHECK;
/* What tells a repeated request from another one with the same Idempotency-Key: SHA-256
 * of its scope (the thread; zero: "chat") and its body, whose members count in sorted
 * order. DAC_E_NOMEM. */
enum dac_err key_of_body(const struct id *thread, struct json_object *body,
                         uint8_t out[32]) DAC_CHECK;

#endif
