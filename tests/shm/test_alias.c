/*
 * Names of turns, with real processes: many claim the same name at once, also while some
 * are killed; no name is lost between who binds it and the recorder; what a death or a
 * stop at each step leaves of a name is what the table says.
 */
#include <sched.h>

#include "tests/shm/actors.h"

#define NAMES  300u
#define CROWD  6u
#define ROUNDS 150u

/* What the processes of a test share beside the segment. */
struct board {
    shm_u32 led[NAMES];
    shm_u64 use[NAMES];
    shm_u32 differs; /* how often somebody found another use than the first */
    shm_u32 round, bound, stored, over;
};

static struct board *board;

static void setup(void)
{
    fixture_open(512);
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                 -1, 0);
    ck_assert_ptr_ne(board, MAP_FAILED);
}

static void teardown(void)
{
    munmap(board, sizeof(*board));
    fixture_close();
}

/* --- many at once ------------------------------------------------------------------- */

static void note_use(uint32_t n, struct flight_ref ref)
{
    uint64_t first = 0;

    if (!atomic_compare_exchange_strong(&board->use[n], &first, alias_use(ref)) &&
        first != alias_use(ref))
        atomic_fetch_add(&board->differs, 1);
}

/* Claims the name and leads, or finds who does. */
static enum dac_err lead_or_find(uint32_t n, struct flight_ref *ref)
{
    struct alias_key key = name_of(0, n);
    struct join_request req = private_question(n);
    struct alias_found found;
    struct join_result r;
    uint32_t alias;
    enum dac_err e = alias_find(&shm, &key, &found);

    if (e == DAC_E_NOT_FOUND)
        e = alias_claim(&shm, &key, body_of(n), 1, NULL, &alias, &found);
    else if (e == DAC_OK)
        e = DAC_E_EXISTS;
    *ref = found.ref;
    if (e != DAC_OK)
        return e == DAC_E_EXISTS ? DAC_OK : e;
    if (n % 2)
        sched_yield(); /* the others find it in hand */
    e = index_join(&shm, &req, &r);
    if (e != DAC_OK) {
        alias_drop(&shm, alias);
        return e;
    }
    alias_bind(&shm, alias, r.ref);
    atomic_fetch_add(&board->led[n], 1);
    *ref = r.ref;
    return DAC_OK;
}

static void go_through_all_names(void)
{
    struct flight_ref ref;
    enum dac_err e;

    for (uint32_t n = 0; n < NAMES; n++) {
        while ((e = lead_or_find(n, &ref)) == DAC_E_BUSY)
            ;
        must(e, "neither led nor found", n);
        note_use(n, ref);
    }
}

START_TEST(crowd_with_one_name_has_one_leader)
{
    uint32_t slots[CROWD];
    pid_t pids[CROWD];
    int status;

    for (uint32_t i = 0; i < CROWD; i++) {
        slots[i] = new_worker();
        pids[i] = fork_actor(slots[i]);
        if (pids[i] == 0) {
            while (atomic_load(&board->round) == 0)
                ;
            go_through_all_names();
            _exit(0);
        }
    }
    atomic_store(&board->round, 1);
    for (uint32_t i = 0; i < CROWD; i++) {
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_int_eq(status, 0);
    }
    for (uint32_t n = 0; n < NAMES; n++)
        ck_assert_uint_eq(atomic_load(&board->led[n]), 1);
    ck_assert_uint_eq(atomic_load(&board->differs), 0);
    ck_assert_uint_eq(alias_used(&shm), NAMES);
    assert_all_valid();
    for (uint32_t i = 0; i < CROWD; i++)
        bury_actor(slots[i]);
    assert_nothing_leaked();
}
END_TEST

/* Each of them is killed somewhere on its way, and another one begins anew. */
START_TEST(killed_leaders_are_not_replaced)
{
    unsigned seed = (unsigned)getpid();
    uint32_t slots[CROWD];
    pid_t pids[CROWD];

    for (uint32_t i = 0; i < CROWD; i++)
        pids[i] = 0;
    for (uint32_t kills = 0; kills < 150; kills++) {
        uint32_t i = roll(&seed, CROWD);

        if (pids[i] != 0) {
            ck_assert_int_eq(kill(pids[i], SIGKILL), 0);
            ck_assert_int_eq(waitpid(pids[i], NULL, 0), pids[i]);
            bury_actor(slots[i]);
        }
        slots[i] = new_worker();
        pids[i] = fork_actor(slots[i]);
        if (pids[i] == 0) {
            go_through_all_names();
            for (;;)
                pause();
        }
        usleep(roll(&seed, 600));
    }
    for (uint32_t i = 0; i < CROWD; i++) {
        if (pids[i] == 0)
            continue;
        ck_assert_int_eq(kill(pids[i], SIGKILL), 0);
        ck_assert_int_eq(waitpid(pids[i], NULL, 0), pids[i]);
        bury_actor(slots[i]);
    }
    shm.self = new_worker();
    go_through_all_names();
    /* Who died right after binding did not write that down. */
    for (uint32_t n = 0; n < NAMES; n++)
        ck_assert_uint_le(atomic_load(&board->led[n]), 1);
    ck_assert_uint_eq(atomic_load(&board->differs), 0);
    assert_all_valid();
    bury_actor(shm.self);
    assert_nothing_leaked();
}
END_TEST

/* More than the pool has, by processes that die before they bind them. */
START_TEST(claims_of_the_dead_come_back)
{
    uint32_t batch = shm.hdr->alias_count / 16;

    for (uint32_t life = 0; life < 20; life++) {
        uint32_t slot = new_worker();
        pid_t pid = fork_actor(slot);

        if (pid == 0) {
            for (uint32_t i = 0; i < batch; i++) {
                struct alias_key key = name_of(0, life % 2 ? i : life * batch + i);
                struct alias_found found;
                uint32_t alias;

                must(alias_claim(&shm, &key, body_of(i), 1, NULL, &alias, &found),
                     "not claimed", i);
            }
            raise(SIGKILL);
        }
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        bury_actor(slot);
        assert_all_valid();
    }
    assert_nothing_leaked();
}
END_TEST

/* --- from the binder to the recorder ------------------------------------------------ */

static struct join_result running;

static uint32_t store_what_is_new(uint32_t flight)
{
    struct alias_walk walk = alias_walk(&shm, flight);
    uint32_t at, fresh = 0;

    while (alias_walk_next(&shm, &walk, &at)) {
        fresh += !alias_is_stored(&shm, at);
        alias_set_stored(&shm, at);
    }
    alias_count_stored(&shm, flight);
    return fresh;
}

static void store_if_ended(void *arg, uint32_t flight)
{
    (void)arg;
    if (flight_state_ended(flight_load(&shm, flight).state))
        atomic_fetch_add(&board->stored, store_what_is_new(flight));
}

/* Looks at nothing that it was not woken for. */
static void record_until_over(void)
{
    struct pollfd p = {.fd = shm.eventfd[shm.self], .events = POLLIN};

    while (!atomic_load(&board->over)) {
        poll(&p, 1, 10000);
        wake_begin(&shm);
        wake_take(&shm, store_if_ended, NULL);
    }
}

/* In each round it reads the flight of the round and binds a few names to it. */
static void bind_in_each_round(uint32_t me, unsigned seed)
{
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        struct flight_ref ref;

        while (atomic_load(&board->round) < round)
            ;
        ref.index = (uint32_t)(atomic_load(&board->use[0]) >> 32) - 1;
        ref.incarnation = (uint32_t)atomic_load(&board->use[0]);
        for (uint32_t i = roll(&seed, 2000); i > 0; i--)
            atomic_signal_fence(memory_order_seq_cst);
        for (uint32_t i = 0; i < 3; i++) {
            struct alias_key key = name_of(me, round * 4 + i);
            struct alias_found found;
            uint32_t alias;

            must(alias_claim(&shm, &key, body_of(0), 1, NULL, &alias, &found),
                 "not claimed", round);
            alias_bind(&shm, alias, ref);
        }
        atomic_fetch_add(&board->bound, 3);
    }
}

static void wait_until_stored(uint32_t want)
{
    uint64_t until = clock_now_ns() + 5 * NS_PER_S;

    while (atomic_load(&board->stored) < want) {
        ck_assert_msg(clock_now_ns() < until, "%u of %u names were stored",
                      atomic_load(&board->stored), want);
        usleep(50);
    }
}

START_TEST(no_name_is_lost_on_the_way_to_the_recorder)
{
    uint32_t recorder = new_recorder(), workers[3];
    pid_t pids[DAC_ARRAY_LEN(workers)], writer;
    unsigned seed = (unsigned)getpid();
    uint64_t followers, hits;
    int status;

    shm.self = new_worker();
    writer = fork_actor(recorder);
    if (writer == 0) {
        record_until_over();
        _exit(0);
    }
    for (uint32_t i = 0; i < DAC_ARRAY_LEN(workers); i++) {
        workers[i] = new_worker();
        pids[i] = fork_actor(workers[i]);
        if (pids[i] == 0) {
            bind_in_each_round(i, seed + i);
            _exit(0);
        }
    }
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        struct join_request req = private_question(round);
        uint32_t want = round * 3 * (uint32_t)DAC_ARRAY_LEN(workers);

        ck_assert_int_eq(index_join(&shm, &req, &running), DAC_OK);
        struct shm_flight *f = flight_at(&shm, running.ref.index);
        for (uint32_t i = 0; i < DAC_ARRAY_LEN(workers); i++)
            atomic_fetch_or(&f->readers, UINT64_C(1) << workers[i]);
        atomic_store(&board->use[0], alias_use(running.ref));
        atomic_store(&board->round, round);
        for (uint32_t i = roll(&seed, 2000); i > 0; i--)
            atomic_signal_fence(memory_order_seq_cst);
        end_flight(&running.ref, &running.writer, FLIGHT_FAILED, clock_now_ns());
        wake_recorder(&shm, running.ref.index);
        wait_until_stored(want);
        ck_assert_uint_eq(atomic_load(&board->stored), want);
        while (alias_pending(&shm, running.ref.index))
            ;
        while (atomic_load(&board->bound) < want)
            ;
        atomic_store(&f->readers, 0);
        atomic_store(&f->stored, STORED_SQLITE);
        ck_assert_int_eq(index_recycle(&shm, running.ref, RECYCLE_PRESSURE,
                                       clock_now_ns(), 0, &followers, &hits),
                         DAC_OK);
    }
    atomic_store(&board->over, 1);
    wake_kick(&shm);
    for (uint32_t i = 0; i < DAC_ARRAY_LEN(workers); i++) {
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_int_eq(status, 0);
        bury_actor(workers[i]);
    }
    ck_assert_int_eq(waitpid(writer, &status, 0), writer);
    ck_assert_int_eq(status, 0);
    bury_actor(recorder);
    bury_actor(shm.self);
    assert_nothing_leaked();
}
END_TEST

#ifdef DAC_CRASHPOINTS

/* --- death and stop at each step ---------------------------------------------------- */

#define NAME 5u

/* What the name is bound to after it. */
enum outcome { NOTHING, OLD_FLIGHT, NEW_FLIGHT };

static struct join_result old_flight;

static struct alias_key same_bucket(uint32_t n)
{
    return name_of(0, NAME + n * shm.hdr->bucket_count);
}

static void claim_and_bind(const struct flight_ref *replace)
{
    struct alias_key key = name_of(0, NAME);
    struct join_request req = private_question(NAME);
    struct alias_found found;
    struct join_result r;
    uint32_t alias;

    must(alias_claim(&shm, &key, body_of(NAME), 1, replace, &alias, &found),
         "not claimed", 0);
    must(index_join(&shm, &req, &r), "not led", 0);
    atomic_store(&board->use[0], alias_use(r.ref));
    alias_bind(&shm, alias, r.ref);
}

static void bind_name(void)
{
    claim_and_bind(NULL);
}

static void replace_name(void)
{
    claim_and_bind(&old_flight.ref);
}

static void drop_name(void)
{
    struct alias_key key = name_of(0, NAME);
    struct alias_found found;
    uint32_t alias;

    must(alias_claim(&shm, &key, body_of(NAME), 1, NULL, &alias, &found), "not claimed",
         0);
    alias_drop(&shm, alias);
}

/* Names that are free stand before it in the chain. */
static void find_name(void)
{
    struct alias_key key = name_of(0, NAME);
    struct alias_found found;

    must(alias_find(&shm, &key, &found), "not found", 0);
}

static void take_free_name(void)
{
    struct alias_key key = name_of(1, 77);
    struct alias_found found;
    uint32_t alias;

    must(alias_claim(&shm, &key, body_of(NAME), 1, NULL, &alias, &found), "not claimed",
         0);
    alias_drop(&shm, alias);
}

static void store_names(void)
{
    store_aliases(old_flight.ref.index);
}

static void let_names_go(void)
{
    uint64_t followers, hits;

    store_aliases(old_flight.ref.index);
    must(index_recycle(&shm, old_flight.ref, RECYCLE_PRESSURE, clock_now_ns(), 0,
                       &followers, &hits),
         "not recycled", 0);
}

/* Before it: NAME has nothing, or is bound to an old flight that failed. Before that in
 * the chain may stand a name that is free, and the hand may point at it. */
enum before { UNUSED, BOUND, BEHIND_A_FREE_ONE, HALF_BOUND };

static const struct {
    const char *point;
    void (*act)(void);
    enum before before;
    enum outcome after;
} deaths[] = {
    {"alias_taken", bind_name, UNUSED, NOTHING},
    {"alias_chained", bind_name, UNUSED, NOTHING},
    {"alias_linked", bind_name, UNUSED, NOTHING},
    {"index_linked", bind_name, UNUSED, NOTHING},
    {"alias_aimed", bind_name, UNUSED, NOTHING},
    {"alias_pushed", bind_name, UNUSED, NEW_FLIGHT},
    {"alias_bound", bind_name, UNUSED, NEW_FLIGHT},
    {"alias_dropped", drop_name, UNUSED, NOTHING},
    {"alias_taken", replace_name, BOUND, OLD_FLIGHT},
    {"alias_unlinked", replace_name, BOUND, OLD_FLIGHT},
    {"alias_unchained", replace_name, BOUND, NOTHING},
    {"alias_replaced", replace_name, BOUND, NOTHING},
    {"alias_chained", replace_name, BOUND, NOTHING},
    {"alias_aimed", replace_name, BOUND, NOTHING},
    {"alias_pushed", replace_name, BOUND, NEW_FLIGHT},
    {"alias_bound", replace_name, BOUND, NEW_FLIGHT},
    {"alias_unlinked", find_name, BEHIND_A_FREE_ONE, OLD_FLIGHT},
    {"alias_unchained", find_name, BEHIND_A_FREE_ONE, OLD_FLIGHT},
    {"alias_unlinked", take_free_name, BEHIND_A_FREE_ONE, OLD_FLIGHT},
    {"alias_unchained", take_free_name, BEHIND_A_FREE_ONE, OLD_FLIGHT},
    {"alias_taken", take_free_name, BEHIND_A_FREE_ONE, OLD_FLIGHT},
    {"alias_settled", find_name, HALF_BOUND, OLD_FLIGHT},
    {"alias_marked", store_names, BOUND, OLD_FLIGHT},
    {"alias_let_go", let_names_go, BOUND, OLD_FLIGHT},
};

static void bind_to_old(const struct alias_key *key)
{
    struct alias_found found;
    uint32_t alias;

    ck_assert_int_eq(alias_claim(&shm, key, body_of(NAME), 1, NULL, &alias, &found),
                     DAC_OK);
    alias_bind(&shm, alias, old_flight.ref);
}

/* A process that is dead and swept. */
static void half_bind_to_old(const struct alias_key *key)
{
    uint32_t slot = new_worker();
    pid_t pid = fork_actor(slot);

    if (pid == 0) {
        struct alias_found found;
        uint32_t alias;

        must(alias_claim(&shm, key, body_of(NAME), 1, NULL, &alias, &found),
             "not claimed", 0);
        atomic_store(&alias_at(&shm, alias)->target, alias_use(old_flight.ref));
        alias_push(&shm, alias, old_flight.ref);
        raise(SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    bury_actor(slot);
}

static void prepare(enum before before)
{
    struct alias_key key = name_of(0, NAME), free_one = same_bucket(1);
    struct join_request req = private_question(1);
    struct alias_found found;
    uint32_t alias;

    ck_assert_int_eq(index_join(&shm, &req, &old_flight), DAC_OK);
    if (before == HALF_BOUND)
        half_bind_to_old(&key);
    else if (before != UNUSED)
        bind_to_old(&key);
    if (before == BEHIND_A_FREE_ONE) {
        ck_assert_int_eq(
            alias_claim(&shm, &free_one, body_of(1), 1, NULL, &alias, &found), DAC_OK);
        alias_drop(&shm, alias);
        atomic_store(&shm.hdr->alias_hand, alias);
    }
    end_flight(&old_flight.ref, &old_flight.writer, FLIGHT_FAILED, clock_now_ns());
    flight_drop_reader(&shm, old_flight.ref.index);
    atomic_store(&flight_at(&shm, old_flight.ref.index)->stored, STORED_FAILED);
}

static pid_t act(int i, uint32_t slot, const char *sig)
{
    pid_t pid = fork_actor(slot);

    if (pid != 0)
        return pid;
    setenv("DAC_CRASH_AT", deaths[i].point, 1);
    setenv("DAC_CRASH_SIGNAL", sig, 1);
    crash_set_role("worker");
    deaths[i].act();
    _exit(0);
}

static void expect(enum outcome after)
{
    struct alias_key key = name_of(0, NAME);
    struct alias_found found;
    enum dac_err e = alias_find(&shm, &key, &found);

    ck_assert_int_eq(e, after == NOTHING ? DAC_E_NOT_FOUND : DAC_OK);
    if (after == OLD_FLIGHT)
        ck_assert_uint_eq(alias_use(found.ref), alias_use(old_flight.ref));
    if (after == NEW_FLIGHT)
        ck_assert_uint_eq(alias_use(found.ref), atomic_load(&board->use[0]));
    if (after != NOTHING)
        ck_assert_int_eq(memcmp(found.body, body_of(NAME), 32), 0);
}

/* What the name has can be replaced by a living one, and the recorder stores it all. */
static void go_on(void)
{
    struct alias_key key = name_of(0, NAME);
    struct alias_found found;
    uint32_t alias;
    enum dac_err e = alias_find(&shm, &key, &found);
    struct join_request req = private_question(9);
    struct join_result r;

    e = alias_claim(&shm, &key, body_of(NAME), 1, e == DAC_OK ? &found.ref : NULL, &alias,
                    &found);
    ck_assert_int_eq(e, DAC_OK);
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    alias_bind(&shm, alias, r.ref);
    ck_assert_int_eq(alias_find(&shm, &key, &found), DAC_OK);
    ck_assert_uint_eq(alias_use(found.ref), alias_use(r.ref));
    assert_all_valid();
}

START_TEST(death_at_each_step)
{
    uint32_t slot;
    int status;

    shm.self = new_worker();
    prepare(deaths[_i].before);
    slot = new_worker();
    pid_t pid = act(_i, slot, "KILL");
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
                  "%s: ended with status %x", deaths[_i].point, (unsigned)status);
    bury_actor(slot);
    expect(deaths[_i].after);
    assert_all_valid();
    go_on();
    bury_actor(shm.self);
    assert_nothing_leaked();
}
END_TEST

/* The others are not held up: the name is in hand, or it is what it was or will be. */
START_TEST(stop_at_each_step)
{
    struct alias_key key = name_of(0, NAME), other = name_of(1, 1000);
    struct alias_found found;
    uint32_t slot, alias;
    int status;

    shm.self = new_worker();
    prepare(deaths[_i].before);
    slot = new_worker();
    pid_t pid = act(_i, slot, "STOP");
    ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
    ck_assert(WIFSTOPPED(status));
    uint64_t start = clock_now_ns();
    enum dac_err e = alias_find(&shm, &key, &found);
    ck_assert(e == DAC_OK || e == DAC_E_BUSY || e == DAC_E_NOT_FOUND);
    if (deaths[_i].after == NEW_FLIGHT && strcmp(deaths[_i].point, "alias_pushed") == 0)
        ck_assert_int_eq(e, DAC_E_BUSY); /* nobody does it for the living */
    e = alias_claim(&shm, &other, body_of(1), 1, NULL, &alias, &found);
    ck_assert_int_eq(e, DAC_OK);
    alias_drop(&shm, alias);
    ck_assert_uint_lt(clock_now_ns() - start, 4 * BUCKET_LOCK_NS);
    ck_assert_int_eq(kill(pid, SIGCONT), 0);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0,
                  "%s: ended with status %x", deaths[_i].point, (unsigned)status);
    bury_actor(slot);
    assert_all_valid();
    go_on();
    bury_actor(shm.self);
    assert_nothing_leaked();
}
END_TEST

#endif

int main(void)
{
    Suite *s = suite_create("names of turns");
    TCase *t = tcase_create("names");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 30);
    tcase_add_loop_test(t, crowd_with_one_name_has_one_leader, 0, 3);
    tcase_add_test(t, killed_leaders_are_not_replaced);
    tcase_add_test(t, claims_of_the_dead_come_back);
    tcase_add_test(t, no_name_is_lost_on_the_way_to_the_recorder);
#ifdef DAC_CRASHPOINTS
    tcase_add_loop_test(t, death_at_each_step, 0, DAC_ARRAY_LEN(deaths));
    tcase_add_loop_test(t, stop_at_each_step, 0, DAC_ARRAY_LEN(deaths));
#endif
    suite_add_tcase(s, t);
    return run_suite(s);
}
