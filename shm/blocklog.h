/*
 * The block log of a flight: what its upstream call produced, as records in fixed-size
 * blocks from one pool; one writer (the owner), any readers.
 *
 * Offsets are absolute, 64-bit, and never wrap. The writer fills blocks and then
 * publishes `tail` with a release store, a whole record at a time; a reader that loaded
 * `tail` with acquire sees every byte before it. The writer never waits for a reader, and
 * nothing is overwritten while a reader's bit is set, so a reader needs no validation.
 * Room for END is kept beside every other record: an answer can always be ended.
 */
#ifndef DAC_SHM_BLOCKLOG_H
#define DAC_SHM_BLOCKLOG_H

#include "shm/flight.h"

enum record_type {
    RECORD_REQUEST = 1, /* JSON: the question and its parameters, enough to ask again */
    RECORD_DELTA,       /* answer text */
    RECORD_REASONING,   /* text */
    RECORD_TOOL,        /* JSON: tool_calls delta array */
    RECORD_CITATIONS,   /* JSON array; the last one counts */
    RECORD_USAGE,       /* struct record_usage */
    RECORD_RESET,       /* struct record_reset: a new generation begins */
    RECORD_END,         /* struct record_end, once */
    RECORD_THREAD,      /* JSON: a thread to create */
    RECORD_TYPE_MAX = RECORD_THREAD
};

struct record_header {
    uint32_t len; /* of the payload */
    uint8_t type;
    uint8_t unused;
    uint16_t generation;
};

struct record_usage {
    int64_t prompt_tokens; /* -1: not said */
    int64_t completion_tokens;
    int64_t total_tokens;
};

struct record_reset {
    char reason[32];
};

struct record_end {
    uint32_t status;      /* enum turn_status */
    uint32_t http_status; /* what clients that got nothing yet are answered, 0: 200 */
    uint64_t retry_after_ms;
    uint32_t retryable;
    char finish_reason[32];
    char code[40];
    char message[256];
};

#define BLOCKLOG_END_ROOM (sizeof(struct record_header) + sizeof(struct record_end))

struct blocklog_writer {
    struct flight_ref ref;
    uint16_t generation;
    uint32_t block;     /* the block that holds `offset`, or the one before it */
    uint64_t base;      /* absolute offset of that block's first byte */
    uint64_t offset;    /* == tail */
    uint64_t max_bytes; /* END may pass it */
};

/* Owner: begins at the published tail, walking the chain there. Allocates the first block
 * if there is none: DAC_E_FULL. DAC_E_STATE: not the owner; DAC_E_CORRUPT. */
enum dac_err blocklog_open(struct shm *shm, struct flight_ref ref,
                           struct blocklog_writer *out) DAC_CHECK;
/* Appends and publishes one record; all of it or nothing. DAC_E_FULL: no blocks (try
 * again later); DAC_E_TOO_LARGE: max_bytes. END never fails after a successful open. */
enum dac_err blocklog_append(struct shm *shm, struct blocklog_writer *w,
                             enum record_type type, const void *payload,
                             uint32_t len) DAC_CHECK;

struct blocklog_cursor {
    struct flight_ref ref;
    uint32_t block; /* block + 1, 0: not there yet */
    uint64_t base;
    uint64_t offset;
};

struct blocklog_record {
    enum record_type type;
    uint16_t generation;
    uint32_t len;
};

void blocklog_rewind(struct blocklog_cursor *c, struct flight_ref ref);
/* The same, but at `offset`, where a record begins (a flight's `start`). */
void blocklog_seek(struct blocklog_cursor *c, struct flight_ref ref, uint64_t offset);
/* The record at the cursor. DAC_E_AGAIN: nothing published there yet. DAC_E_CORRUPT: the
 * chain or the record breaks a rule. */
enum dac_err blocklog_peek(const struct shm *shm, struct blocklog_cursor *c,
                           struct blocklog_record *out) DAC_CHECK;
/* The payload of the record peeked: a pointer into the segment where it lies in one
 * block, else copied into `scratch` (at least out->len bytes). */
const void *blocklog_payload(const struct shm *shm, const struct blocklog_cursor *c,
                             const struct blocklog_record *r, void *scratch);
/* Copies up to `n` payload bytes. */
void blocklog_copy(const struct shm *shm, const struct blocklog_cursor *c,
                   const struct blocklog_record *r, void *dst, size_t n);
void blocklog_next(const struct shm *shm, struct blocklog_cursor *c,
                   const struct blocklog_record *r);
/* Published bytes behind the cursor. */
uint64_t blocklog_unread(const struct shm *shm, const struct blocklog_cursor *c);

/* Whether a block belongs to nobody now. */
bool block_is_free(const struct shm *shm, uint32_t block);
uint32_t blocks_free_hint(const struct shm *shm);
/* Whether newcomers are to be refused because few blocks are left. */
bool blocks_low(const struct shm *shm);

/* Walks a whole log: chain, owners, records, END last. On a quiet or dead segment, or by
 * a reader. */
bool blocklog_valid(const struct shm *shm, uint32_t flight, char *why, size_t n);

#endif
