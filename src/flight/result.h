/*
 * A whole flight read from its log into local memory: for answers that are not streamed
 * and for the recorder. Text of earlier generations is dropped at a RESET.
 */
#ifndef DAC_FLIGHT_RESULT_H
#define DAC_FLIGHT_RESULT_H

#include "flight/request.h"
#include "shm/blocklog.h"
#include "shm/flight.h"
#include "store/store.h"

struct turn_result {
    bool has_request;
    struct turn_request request; /* of a FLIGHT_TURN */
    bool has_thread;
    struct thread_request thread; /* of a FLIGHT_THREAD */
    struct buf text;              /* owned */
    struct buf reasoning;         /* owned */
    struct buf citations;         /* owned: JSON array, empty if none */
    struct buf tools; /* owned: JSON array of tool_calls, merged; empty if none */
    struct record_usage usage; /* -1: not said */
    uint16_t generation;
    bool ended;
    struct record_end end;
};

/* Reads everything published. The caller is a reader, the owner, or the recorder before
 * it set `stored`. DAC_E_CORRUPT, DAC_E_NOMEM. `out` is to be freed in any case. */
enum dac_err turn_result_read(const struct shm *shm, struct flight_ref ref,
                              struct turn_result *out) DAC_CHECK;
void turn_result_free(struct turn_result *r);

/* A turn's times in milliseconds, negative where there is none, from the flight's stamps.
 */
struct turn_timing {
    double ttft_ms;       /* arrival of the leader to the first content */
    double latency_ms;    /* arrival of the leader to the end */
    double queue_wait_ms; /* in the pacer's queue */
    double own_ms;        /* in code of ours (shm/timing.h, as the next two) */
    double call_ms;       /* of the last call */
    double call_ttft_ms;
};
struct turn_timing turn_timing(const struct shm *shm, uint32_t flight);

/* How a flight calls the place in which the store has something. */
enum flight_stored turn_stored_at(enum store_place place);

#endif
