/*
 * The flight's word, moved by one compare-and-swap, and what hangs on it.
 *
 *   FREE -> CLAIMED -> QUEUED -> FETCHING -> STREAMING -> DONE | FAILED | CANCELLED
 *   DONE | FAILED | CANCELLED -> FREE
 *   CLAIMED, not indexed, owner reaped -> FREE
 *   CLAIMED | QUEUED | FETCHING | STREAMING, owner reaped -> ORPHANED
 *   ORPHANED -> CLAIMED, by a reader that takes it over
 *   ORPHANED -> FETCHING, by the recorder that ends it
 *
 * Only the owner moves a flight on. Everyone else asks (flight_ask_cancel) and wakes it.
 */
#ifndef DAC_SHM_FLIGHT_H
#define DAC_SHM_FLIGHT_H

#include "base/trace.h"
#include "shm/segment.h"

/* How a turn ended; in END records, samples and the store. */
enum turn_status {
    TURN_RUNNING = 0,
    TURN_COMPLETE,
    TURN_CANCELLED,
    TURN_INCOMPLETE,
    TURN_FAILED
};

struct flight_word {
    enum flight_state state;
    uint32_t owner; /* slot, SHM_NO_SLOT: nobody */
    uint16_t generation;
    uint32_t incarnation;
};

/* Names one use of one flight; stays unambiguous after the flight was recycled. */
struct flight_ref {
    uint32_t index;
    uint32_t incarnation;
};

static inline uint64_t flight_pack(struct flight_word w)
{
    return (uint64_t)w.state << 56 | (uint64_t)(w.owner & 0xff) << 48 |
           (uint64_t)w.generation << 32 | w.incarnation;
}

static inline struct flight_word flight_unpack(uint64_t v)
{
    return (struct flight_word){.state = (enum flight_state)(v >> 56),
                                .owner = (uint32_t)(v >> 48 & 0xff),
                                .generation = (uint16_t)(v >> 32 & 0xffff),
                                .incarnation = (uint32_t)v};
}

static inline struct shm_flight *flight_at(const struct shm *shm, uint32_t index)
{
    DAC_ASSERT(index < shm->hdr->flight_count);
    return &shm->flights[index];
}

/* The word now (acquire). */
struct flight_word flight_load(const struct shm *shm, uint32_t index);
bool flight_state_ended(enum flight_state s);
bool flight_state_running(enum flight_state s); /* CLAIMED … STREAMING and ORPHANED */
const char *flight_state_name(enum flight_state s);
const char *flight_stored_name(enum flight_stored s);
const char *turn_status_name(enum turn_status s);
/* The state of a flight whose END says so; FAILED for what is no end. */
enum flight_state flight_state_for(enum turn_status s);
/* Whether a flight may move from one state to another: the table above. */
bool flight_may_move(enum flight_state from, enum flight_state to);

/* Owner: moves its flight on. DAC_E_STATE if it is no longer this process's (a bug, or
 * the flight was taken away after this process was declared dead). */
enum dac_err flight_advance(struct shm *shm, struct flight_ref ref,
                            enum flight_state to) DAC_CHECK;
/* Claims a FREE flight for this process with a clock hand. The caller fills it in.
 * DAC_E_FULL: none, or few blocks left; the recorder was told to make room. */
enum dac_err flight_claim(struct shm *shm, struct flight_ref *out) DAC_CHECK;
/* Tells the recorder that something was found full: it is to recycle what can go. */
void flight_ask_for_room(struct shm *shm);
/* Owner in CLAIMED, not indexed: gives it back. */
void flight_unclaim(struct shm *shm, struct flight_ref ref);
/* An ORPHANED flight for this process: generation + 1, state `to`. One caller wins. */
enum dac_err flight_adopt(struct shm *shm, struct flight_ref ref,
                          enum flight_state to) DAC_CHECK;
/* A reader of an ORPHANED flight says that it cannot take it over, or that it can after
 * all. True if that is news; the caller then wakes the recorder. */
bool flight_decline(struct shm *shm, uint32_t index, bool declined);
/* Whether none of its readers can take it over; also if there are none. */
bool flight_all_declined(const struct shm *shm, uint32_t index);
/* Owner of an adopted flight that it cannot go on with: ORPHANED again, as if it had
 * died; readers and the recorder are woken. */
void flight_give_back(struct shm *shm, struct flight_ref ref);
/* Ends the present use: FREE, incarnation + 1, all its blocks are free. The caller holds
 * the bucket's lock, or the flight is not indexed. `from` is the word last seen. */
enum dac_err flight_release(struct shm *shm, uint32_t index,
                            struct flight_word from) DAC_CHECK;

/* Asks the owner to stop; true the first time. The caller then wakes the owner. */
bool flight_ask_cancel(struct shm *shm, uint32_t index);
/* Clears this process's reader bit; true if that left no reader. */
bool flight_drop_reader(struct shm *shm, uint32_t index);
/* Of the request that led it. */
struct trace flight_trace(const struct shm *shm, uint32_t index);
uint64_t flight_readers(const struct shm *shm, uint32_t index);
/* Raises the grace to at least `ns`. */
void flight_raise_grace(struct shm *shm, uint32_t index, uint64_t ns);

/* `quiet`: nobody is moving it, so rules over several words are checked too. */
bool flight_valid(const struct shm *shm, uint32_t index, bool quiet, char *why, size_t n);

#endif
