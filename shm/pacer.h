/*
 * The pacer: one provider's limits, shared by all processes.
 *
 * Rate: GCRA (ITU-T I.371; the "virtual scheduling" form) in one 64-bit word that holds
 * the theoretical arrival time. Concurrency: an array of permit words {slot, flight,
 * incarnation}, so that the master can give back what a dead process held. Nobody blocks:
 * a refused caller learns how long to wait, or that a permit's return will wake it.
 */
#ifndef DAC_SHM_PACER_H
#define DAC_SHM_PACER_H

#include "shm/flight.h"

#define PACER_NO_PERMIT UINT32_MAX
#define PACER_NONE      UINT32_MAX

/* Why a provider is not called for a while. */
enum pacer_reason {
    PACER_UNPAUSED,
    PACER_RATE_LIMITED, /* it said 429 */
    PACER_HANDED_OVER,  /* another segment of this instance uses its limits */
    PACER_REASON_COUNT
};

/* The pacer called `name`, or PACER_NONE. */
uint32_t pacer_find(const struct shm *shm, const char *name);
/* Master: the pacer called `name`, which gets the next free one if there is none yet, and
 * keeps it for the life of the segment. DAC_E_FULL: SHM_PROVIDERS_MAX names are in use.
 */
enum dac_err pacer_name(struct shm *shm, const char *name, uint32_t *out) DAC_CHECK;
/* Master: sets limits in place. Who waited under lower ones waits no longer than under
 * these. */
void pacer_set_limits(struct shm *shm, uint32_t provider, double rps, uint32_t burst,
                      uint32_t concurrency);
/* Master: the calls at a time alone. Of more that run none is ended; new ones wait. */
void pacer_set_concurrency(struct shm *shm, uint32_t provider, uint32_t concurrency);
/* Owner of a QUEUED flight: takes a permit and a token. DAC_OK: *permit is to be given
 * back. DAC_E_AGAIN: *wait_ns is when to try again; UINT64_MAX: a wake-up will say (this
 * slot is noted as waiting). */
enum dac_err pacer_take(struct shm *shm, uint32_t provider, struct flight_ref ref,
                        uint64_t now_ns, uint32_t *permit, uint64_t *wait_ns) DAC_CHECK;
/* Gives a permit back and wakes who waits. PACER_NO_PERMIT is ignored. */
void pacer_give(struct shm *shm, uint32_t provider, uint32_t permit,
                struct flight_ref ref);
/* Nobody calls the provider before `until_ns`; the reason is for who looks on. */
void pacer_pause(struct shm *shm, uint32_t provider, uint64_t until_ns,
                 enum pacer_reason reason);
/* How many calls could start at once now for the rate's sake; UINT32_MAX: any number. */
uint32_t pacer_tokens(const struct shm *shm, uint32_t provider, uint64_t now_ns);
/* Master, in a sweep: gives back the permits of a dead slot; returns how many. */
uint32_t pacer_sweep(struct shm *shm, uint32_t slot);
/* Permits taken now, by counting the words. */
uint32_t pacer_in_flight(const struct shm *shm, uint32_t provider);
bool pacer_valid(const struct shm *shm, uint32_t provider, bool quiet, char *why,
                 size_t n);

#endif
