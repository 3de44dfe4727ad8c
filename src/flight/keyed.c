/*
 * Asking with an Idempotency-Key: for a day all requests of an org that have the same one
 * get the same turn, wherever it is by then.
 *
 *   memory knows the key    -> a member of that flight, running or not
 *   else, the store does    -> the stored turn is told again
 *   else                    -> the key is claimed; its claimer joins or leads as without
 *                              one, and binds the key to that flight before anything is
 *                              logged
 *
 * Another request with the same key is refused. A turn that failed gives its key free
 * when newcomers would not share the failure any more.
 *
 * A key may come into memory and leave it, for the store, between the look there and the
 * claim; so with the key in hand alias_gone() must be what it was before the look, or all
 * begins anew.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "flight/internal.h"
#include "flight/key.h"
#include "flight/replay.h"
#include "http/problem.h"
#include "shm/alias.h"
#include "shm/crash.h"

#define ROUNDS_MAX 16

/* One request, from its question to its membership. */
struct keyed {
    TAILQ_ENTRY(keyed) link;
    struct flights *fl;
    struct member *member; /* owned until it has joined */
    struct ask ask;        /* owns its request */
    struct alias_key key;
    struct store_query *query; /* or NULL */
    int64_t arrived_us;
    bool looked;       /* neither memory nor the store knew the key when alias_gone() */
    uint32_t gone;     /* said this */
    uint64_t waits_ns; /* since when it waits, now and then; 0: it never did */
    bool waits;        /* for room (DAC_E_FULL in `why`), or for the key */
    enum dac_err why;
    unsigned rounds;
};

static void look(struct keyed *k);

/* --- its end ------------------------------------------------------------------------ */

/* The member has gone its way. */
static void keyed_free(struct keyed *k)
{
    struct flights *fl = k->fl;

    if (k->query)
        store_query_cancel(k->query);
    TAILQ_REMOVE(&fl->keyed, k, link);
    fl->keyed_count--;
    fl->members--; /* counted again by member_join() */
    turn_request_free(&k->ask.request);
    free(k);
}

static void refuse(struct keyed *k, const char *code, const char *text)
{
    struct member *m = k->member;

    shm_count(k->fl->shm, SHM_C_refused, 1);
    keyed_free(k);
    member_refuse(m, 503, code, text);
}

static void refuse_for_memory(struct keyed *k)
{
    refuse(k, "no_memory", "the gateway is out of memory; try again");
}

static void refuse_reuse(struct keyed *k)
{
    struct http_exchange *ex = k->member->ex;
    struct http_problem p = {.status = 422,
                             .code = "idempotency_key_reused",
                             .field = "Idempotency-Key",
                             .offset = -1};

    member_free(k->member);
    keyed_free(k);
    http_respond_problem(ex, &p,
                         "header Idempotency-Key was used before with another request; "
                         "a new request needs a new key");
}

static void on_gone(struct http_exchange *ex, void *user)
{
    struct keyed *k = user;

    (void)ex;
    member_free(k->member);
    keyed_free(k);
}

static const struct http_callbacks keyed_callbacks = {.on_gone = on_gone};

/* --- waiting ------------------------------------------------------------------------ */

/* For another process to let go of the key, or for room. */
static void wait_for(struct keyed *k, enum dac_err why)
{
    uint64_t now = clock_now_ns();

    if (k->waits_ns == 0)
        k->waits_ns = now;
    k->waits = true;
    k->why = why;
    if (now - k->waits_ns <= ROOM_WAIT_NS)
        join_arm_timer(k->fl);
    else if (why == DAC_E_FULL)
        refuse(k, "no_room", "too many questions are being answered; try again");
    else
        refuse(k, "busy", "the gateway is busy; try again");
}

static void again(struct keyed *k)
{
    if (++k->rounds > ROUNDS_MAX)
        refuse(k, "busy", "the gateway is busy; try again");
    else
        look(k);
}

/* --- a turn in memory --------------------------------------------------------------- */

/* How a flight ended; false: END is not there. */
static bool read_end(struct local_flight *lf, struct record_end *out)
{
    struct shm *shm = lf->fl->shm;
    struct blocklog_cursor c;
    struct blocklog_record rec;

    blocklog_rewind(&c, lf->ref);
    while (blocklog_peek(shm, &c, &rec) == DAC_OK) {
        if (rec.type == RECORD_END && rec.len == sizeof *out) {
            blocklog_copy(shm, &c, &rec, out, sizeof *out);
            return true;
        }
        blocklog_next(shm, &c, &rec);
    }
    return false;
}

/* Whether newcomers share this failure no longer, or never should: where it is closed its
 * question was not even logged. */
static bool is_over(const struct flights *fl, const struct shm_flight *f)
{
    uint64_t ended = atomic_load_explicit(&f->ended_ns, memory_order_relaxed);
    uint32_t asked = atomic_load_explicit(&f->requests, memory_order_acquire);

    return (asked & FLIGHT_CLOSED) != 0 ||
           clock_now_ns() >= ended + fl->config->error_ttl_ns;
}

static void count_role(struct flights *fl, enum join_role role)
{
    static const enum shm_counter counter[] = {
        [JOIN_FOLLOWER] = SHM_C_followers,
        [JOIN_HIT] = SHM_C_hits,
        [JOIN_FAILURE] = SHM_C_shared_failures,
    };
    shm_count(fl->shm, counter[role], 1);
}

/* Makes k's member one of the key's flight. DAC_OK: it is done with. DAC_E_INVALID: the
 * key is another request's. DAC_E_STATE: the turn failed, the key is free. Others as
 * index_follow(). */
static enum dac_err attach(struct keyed *k, const struct alias_found *found)
{
    struct flights *fl = k->fl;
    const struct shm_flight *f = flight_at(fl->shm, found->ref.index);
    bool same = memcmp(k->ask.key.body, found->body, sizeof found->body) == 0;
    struct flight_word w = flight_load(fl->shm, found->ref.index);
    struct record_end end;
    enum join_role role;

    if (w.incarnation != found->ref.incarnation)
        return DAC_E_NOT_FOUND;
    if (!same && w.state != FLIGHT_FAILED)
        return DAC_E_INVALID;
    enum dac_err e = index_follow(fl->shm, found->ref, k->ask.abandon_grace_ns, &role);
    if (e != DAC_OK)
        return e;
    struct local_flight *lf = attach_local(fl, found->ref, &k->ask.request);
    if (!lf)
        return DAC_E_NOMEM;
    if (role == JOIN_FAILURE && read_end(lf, &end) && end.status != TURN_FAILED)
        role = JOIN_HIT; /* it broke off: there is an answer, such as it is */
    if (role == JOIN_FAILURE && is_over(fl, f))
        e = DAC_E_STATE;
    else if (!same)
        e = DAC_E_INVALID;
    if (e != DAC_OK) {
        local_settle(lf);
        return e;
    }
    struct member *m = k->member;
    count_role(fl, role);
    m->by_key = true;
    m->alias = found->alias + 1;
    m->include_usage = k->ask.include_usage;
    lf->running = true;
    if (role == JOIN_FOLLOWER)
        takeover_keep_question(lf, &k->ask.request);
    keyed_free(k);
    member_join(m, lf, role);
    lf->running = false;
    local_schedule(lf);
    return DAC_OK;
}

/* --- claiming ----------------------------------------------------------------------- */

static void known(struct keyed *k, const struct alias_found *found);

static void claimed(struct keyed *k, uint32_t alias)
{
    struct member *m = k->member;

    CRASH_POINT("key_claimed");
    if (join_try(k->fl, m, &k->ask, &alias) == DAC_E_FULL)
        wait_for(k, DAC_E_FULL);
    else
        keyed_free(k);
}

/* `replace`: a use of a flight that the key need not stand for any more, or NULL. */
static void claim(struct keyed *k, const struct flight_ref *replace)
{
    struct shm *shm = k->fl->shm;
    struct alias_found found;
    uint32_t alias;
    enum dac_err e = alias_claim(shm, &k->key, k->ask.key.body, k->arrived_us, replace,
                                 &alias, &found);

    if (e == DAC_OK && !replace && alias_gone(shm, &k->key) != k->gone) {
        alias_drop(shm, alias);
        again(k);
    } else if (e == DAC_OK) {
        claimed(k, alias);
    } else if (e == DAC_E_EXISTS && ++k->rounds <= ROUNDS_MAX) {
        known(k, &found);
    } else {
        wait_for(k, e);
    }
}

static bool has_expired(const struct keyed *k, int64_t created_us)
{
    return created_us < k->arrived_us - STORE_ALIAS_LIFE_US;
}

/* Memory knows the key. */
static void known(struct keyed *k, const struct alias_found *found)
{
    enum dac_err e = has_expired(k, found->created_us) ? DAC_E_STATE : attach(k, found);

    if (e == DAC_E_STATE)
        claim(k, &found->ref);
    else if (e == DAC_E_INVALID)
        refuse_reuse(k);
    else if (e == DAC_E_NOT_FOUND)
        again(k); /* it has just left memory */
    else if (e == DAC_E_BUSY)
        wait_for(k, e);
    else if (e != DAC_OK)
        refuse_for_memory(k);
}

/* --- a turn in the store ------------------------------------------------------------ */

static void refuse_unread(struct keyed *k)
{
    refuse(k, "store_unavailable", "the store could not be read; try again");
}

static void on_turn(void *arg, enum dac_err e, const struct store_turn *t)
{
    struct keyed *k = arg;
    struct http_exchange *ex = k->member->ex;
    struct replay rp = {.dialect = k->ask.dialect,
                        .turn = t,
                        .cache_status = MEMBER_HIT_BY_KEY,
                        .include_usage = k->ask.include_usage};

    k->query = NULL;
    if (e == DAC_E_NOT_FOUND) {
        k->looked = true; /* somebody has deleted what the key stood for */
        claim(k, NULL);
        return;
    }
    if (e != DAC_OK) {
        refuse_unread(k);
        return;
    }
    count_role(k->fl, JOIN_HIT);
    member_free(k->member);
    keyed_free(k);
    replay_turn(ex, &rp);
}

static void on_alias(void *arg, enum dac_err e, const struct store_alias *a)
{
    struct keyed *k = arg;
    struct flights *fl = k->fl;

    k->query = NULL;
    if (fl->cutting) {
        refuse(k, "shutting_down", "the gateway is shutting down");
    } else if (e == DAC_E_NOT_FOUND) {
        k->looked = true;
        claim(k, NULL);
    } else if (e != DAC_OK) {
        refuse_unread(k);
    } else if (memcmp(a->body_digest, k->ask.key.body, sizeof a->body_digest) != 0) {
        refuse_reuse(k);
    } else {
        k->query = store_read_turn(fl->reader, k->ask.request.org, &a->turn, on_turn, k);
        if (!k->query)
            refuse_for_memory(k);
    }
}

/* --- beginning ---------------------------------------------------------------------- */

static void look(struct keyed *k)
{
    struct flights *fl = k->fl;
    struct alias_found found;

    k->looked = false;
    k->gone = alias_gone(fl->shm, &k->key); /* before, so that nothing is missed */
    switch (alias_find(fl->shm, &k->key, &found)) {
    case DAC_OK:
        known(k, &found);
        break;
    case DAC_E_NOT_FOUND:
        k->query = store_read_alias(fl->reader, k->ask.request.org, k->key.key,
                                    k->arrived_us - STORE_ALIAS_LIFE_US, on_alias, k);
        if (!k->query)
            refuse_for_memory(k);
        break;
    default:
        wait_for(k, DAC_E_BUSY);
    }
}

/* A look in memory and the store counts as long as claim() finds it to. */
static void retry(struct keyed *k)
{
    k->waits = false;
    if (k->fl->cutting)
        refuse(k, "shutting_down", "the gateway is shutting down");
    else if (k->looked)
        claim(k, NULL);
    else
        look(k);
}

void keyed_retry(struct flights *fl)
{
    struct keyed *k, *next;

    for (k = TAILQ_FIRST(&fl->keyed); k; k = next) {
        next = TAILQ_NEXT(k, link); /* k ends alone */
        if (k->waits || fl->cutting)
            retry(k);
    }
}

void keyed_ask(struct flights *fl, struct member *m, struct ask *ask)
{
    struct keyed *k = fl->keyed_count < ROOM_WAITERS_MAX ? calloc(1, sizeof *k) : NULL;

    if (!k || key_org(ask->request.org, k->key.org) != DAC_OK) {
        free(k);
        shm_count(fl->shm, SHM_C_refused, 1);
        member_refuse(m, 503, "no_memory", "the gateway is out of memory; try again");
        return;
    }
    k->fl = fl;
    k->member = m;
    k->ask = *ask;
    memcpy(k->key.key, ask->key.digest, sizeof k->key.key);
    k->arrived_us = clock_wall_us();
    turn_request_init(&ask->request);
    memset(&ask->thread, 0, sizeof ask->thread);
    TAILQ_INSERT_TAIL(&fl->keyed, k, link);
    fl->keyed_count++;
    fl->members++;
    http_set_callbacks(m->ex, &keyed_callbacks, k);
    look(k);
}
