/*
 * Stores which Idempotency-Keys stand for a turn: with the turn, in the same commit and
 * behind it, those that are bound to it by then; later those that found it when it had
 * ended ("late" ones), or that had no room there.
 *
 *   with a turn   recorder_keys_add() -> committed -> marked -> the turn is published
 *   late          recorder_keys_look() lists the flight -> recorder_keys_add_late() ->
 * ...
 *
 * A flight with keys that are not marked is not recycled; one whose turn failed, or was
 * not stored, has nothing to store, and all of them are marked at once. A recorder that
 * dies between a commit and the marks leaves rows that the next one writes again, which
 * changes nothing. Recorder only.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "flight/result.h"
#include "process/recorder_state.h"
#include "shm/alias.h"
#include "shm/blocklog.h"
#include "shm/crash.h"
#include "shm/wake.h"

#define LATE_MAX 64 /* late flights in one batch */

/* The rows of keys in the batch that is being written. */
struct key_rows {
    size_t count;
    struct {
        const struct store_row *row;
        uint32_t alias;
        uint32_t flight;
    } of[BATCH_KEYS];
    size_t late;                      /* of r->late, the first ones, are in this batch */
    char orgs[LATE_MAX][ORG_MAX + 1]; /* borrowed by their rows */
};

struct key_rows *recorder_keys_new(void)
{
    return calloc(1, sizeof(struct key_rows));
}

/* How many keys a batch may hold now. */
static size_t room(const struct recorder *r)
{
    size_t rows, bytes;

    store_batch_max(r->store, &rows, &bytes);
    return rows < BATCH_KEYS ? rows : BATCH_KEYS;
}

/* Rows for the flight's keys that are not marked, as long as there is room. */
static size_t add_rows(struct recorder *r, uint32_t flight, const char *org,
                       struct store_row *rows)
{
    const struct shm_flight *f = flight_at(r->shm, flight);
    struct alias_walk walk = alias_walk(r->shm, flight);
    struct key_rows *keys = r->keys;
    size_t n = 0, max = room(r);
    uint32_t alias;

    while (keys->count < max && alias_walk_next(r->shm, &walk, &alias)) {
        struct store_row *row = &rows[n];
        struct store_alias *a = &row->u.alias;
        struct alias_key key;

        if (alias_is_stored(r->shm, alias))
            continue;
        memset(row, 0, sizeof(*row));
        row->kind = STORE_ALIAS;
        alias_read(r->shm, alias, &key, a->body_digest, &a->created_us);
        memcpy(a->key_digest, key.key, sizeof(a->key_digest));
        memcpy(a->turn.b, f->turn_id, sizeof(a->turn.b));
        a->org = org;
        keys->of[keys->count].row = row;
        keys->of[keys->count].alias = alias;
        keys->of[keys->count++].flight = flight;
        n++;
    }
    return n;
}

size_t recorder_keys_add(struct recorder *r, uint32_t flight, const char *org,
                         struct store_row *rows)
{
    return add_rows(r, flight, org, rows);
}

void recorder_keys_dismiss(struct recorder *r, uint32_t flight)
{
    struct alias_walk walk = alias_walk(r->shm, flight);
    uint32_t alias;

    while (alias_walk_next(r->shm, &walk, &alias))
        alias_set_stored(r->shm, alias);
    alias_count_stored(r->shm, flight);
}

/* --- late ones ------------------------------------------------------------------------
 */

void recorder_keys_look(struct recorder *r, uint32_t flight)
{
    if (r->notes[flight].late || !alias_pending(r->shm, flight))
        return;
    r->notes[flight].late = true;
    r->late[r->late_count++] = flight;
}

/* Whose turn it is, and whether there is one that keys stand for. DAC_E_NOT_FOUND: there
 * is none. */
static enum dac_err read_turn(struct recorder *r, uint32_t flight, char org[ORG_MAX + 1])
{
    const struct shm_flight *f = flight_at(r->shm, flight);
    struct flight_ref ref = {.index = flight,
                             .incarnation = flight_load(r->shm, flight).incarnation};
    struct turn_result res;
    enum dac_err e;

    if (atomic_load(&f->stored) == STORED_FAILED)
        return DAC_E_NOT_FOUND;
    e = turn_result_read(r->shm, ref, &res);
    if (e == DAC_OK && res.has_request && res.end.status != TURN_FAILED)
        memcpy(org, res.request.org, sizeof(res.request.org));
    else if (e != DAC_E_NOMEM)
        e = DAC_E_NOT_FOUND;
    turn_result_free(&res);
    return e;
}

enum dac_err recorder_keys_add_late(struct recorder *r, struct store_row *rows, size_t *n)
{
    struct key_rows *keys = r->keys;

    *n = 0;
    while (keys->late < r->late_count && keys->late < LATE_MAX && keys->count < room(r)) {
        uint32_t flight = r->late[keys->late];
        char *org = keys->orgs[keys->late];
        enum dac_err e = read_turn(r, flight, org);

        if (e == DAC_E_NOMEM)
            return e;
        if (e == DAC_OK)
            *n += add_rows(r, flight, org, rows + *n);
        else
            recorder_keys_dismiss(r, flight);
        keys->late++;
    }
    return DAC_OK;
}

/* --- after the commit ------------------------------------------------------------------
 */

void recorder_keys_committed(struct recorder *r)
{
    struct key_rows *keys = r->keys;
    size_t late = keys->late;
    uint32_t flights[LATE_MAX];

    CRASH_POINT("recorder_keys_committed");
    for (size_t i = 0; i < keys->count; i++) {
        const struct store_row *row = keys->of[i].row;
        struct flight_about about;

        if (row->result == DAC_E_INVALID)
            log_error_about(recorder_about(r, keys->of[i].flight, NULL, &about), 0,
                            "an idempotency key of flight %" PRIu32 " is not stored: %s",
                            keys->of[i].flight, row->why);
        alias_set_stored(r->shm, keys->of[i].alias);
        CRASH_POINT("recorder_key_marked");
    }
    for (size_t i = 0; i < keys->count; i++)
        if (i == 0 || keys->of[i].flight != keys->of[i - 1].flight)
            alias_count_stored(r->shm, keys->of[i].flight);
    memcpy(flights, r->late, late * sizeof(*flights));
    r->late_count -= late;
    memmove(r->late, r->late + late, r->late_count * sizeof(*r->late));
    recorder_keys_forget(r);
    for (size_t i = 0; i < late; i++) {
        /* The last recorder may have died when all were marked and not yet counted. */
        alias_count_stored(r->shm, flights[i]);
        wake_readers(r->shm, flights[i]); /* those who wait for that */
        r->notes[flights[i]].late = false;
        recorder_keys_look(r, flights[i]); /* more may have come, or had no room */
    }
}

void recorder_keys_forget(struct recorder *r)
{
    r->keys->count = r->keys->late = 0;
}
