/*
 * The flights of one worker: joining and leading, running upstream calls for the flights
 * this worker fetches, and the audience of every flight that it reads. Everything shared
 * is in the segment; what is here dies with the worker.
 *
 * Process: worker, event loop thread only. The object listens to this slot's eventfd by
 * itself.
 */
#ifndef DAC_FLIGHT_FLIGHTS_H
#define DAC_FLIGHT_FLIGHTS_H

#include "config/config.h"
#include "shm/segment.h"
#include "store/store.h"
#include "upstream/upstream.h"

struct event_base;
struct flights;

struct flights_options {
    struct event_base *base;
    struct shm *shm;
    const struct config *config; /* borrowed for its life */
    struct upstream *upstream;
    struct store_reader *reader;
};

enum dac_err flights_new(const struct flights_options *opt,
                         struct flights **out) DAC_CHECK;
/* All members must be gone. Fetches are cancelled and their flights ended. */
void flights_free(struct flights *fl);
/* Every 250 ms, from the worker's beat: looks at every flight it reads, dirty or not;
 * graces, comment pings, waits that are over. */
void flights_tick(struct flights *fl, uint64_t now_ns);
/* An operator says stop: asks the turn's owner to end it, whosever it is.
 * DAC_E_NOT_FOUND: it is not in memory; DAC_E_BUSY: try again. */
enum dac_err flights_cancel(struct flights *fl, const struct id *turn) DAC_CHECK;
/* Clients and upstream calls of this worker; 0: a drain is over. */
size_t flights_active(const struct flights *fl);
/* The drain timeout is over: ends every fetch as incomplete ("shutting_down"), tells
 * every client so, and closes it. flights_active() falls to 0 within a second. */
void flights_cut(struct flights *fl);

#endif
