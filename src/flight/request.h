/*
 * What a flight's REQUEST and THREAD records hold, as structs: written once by the
 * leader's worker, read by whoever asks the provider and by the recorder.
 *
 * The record is JSON: {"org","provider","model","user_message_id","assistant_message_id",
 * "thread_id","last_turn_id","content","system","messages","params"}; the last six are
 * absent where they don't apply.
 */
#ifndef DAC_FLIGHT_REQUEST_H
#define DAC_FLIGHT_REQUEST_H

#include "base/bytes.h"
#include "base/ids.h"
#include "base/json.h"

#define ORG_MAX      128 /* bytes of an org's name */
#define MODEL_MAX    200 /* bytes of a model's name */
#define PROVIDER_MAX 31  /* bytes of a provider's name */

struct turn_request {
    char org[ORG_MAX + 1];
    char provider[PROVIDER_MAX + 1];
    char model[MODEL_MAX + 1];
    struct id user_message_id;
    struct id assistant_message_id;
    struct id thread_id;    /* zero: stateless chat */
    struct id last_turn_id; /* of the thread when it was asked; zero: none */
    struct buf content;     /* owned: the user's message, storable text */
    struct buf system; /* owned: system prompt of a thread's question; may be empty */
    struct json_object *messages; /* owned reference: stateless chat; else NULL */
    struct json_object
        *params; /* owned reference: further members for the provider; or NULL */
};

void turn_request_init(struct turn_request *r);
void turn_request_free(struct turn_request *r);
/* Appends the record's JSON. Errors stay in `out->failed`. */
enum dac_err turn_request_write(const struct turn_request *r, struct buf *out) DAC_CHECK;
/* DAC_E_CORRUPT: not such a record. `out` is to be freed in any case. */
enum dac_err turn_request_parse(const char *json, size_t n,
                                struct turn_request *out) DAC_CHECK;

enum thread_op { THREAD_CREATE, THREAD_TITLE, THREAD_DELETE };

/* A thread to create, or a change of one. */
struct thread_request {
    enum thread_op op;
    char org[ORG_MAX + 1];
    struct id thread_id;
    int64_t created_us; /* of the thread */
    struct buf title;   /* owned; data NULL: none */
};

void thread_request_free(struct thread_request *r);
enum dac_err thread_request_write(const struct thread_request *r,
                                  struct buf *out) DAC_CHECK;
enum dac_err thread_request_parse(const char *json, size_t n,
                                  struct thread_request *out) DAC_CHECK;

#endif
