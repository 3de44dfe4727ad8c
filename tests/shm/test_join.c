/*
 * Many processes ask the same questions at the same moment: exactly one leads each, the
 * others follow it, and a finished answer is given to all without another leader.
 */
#include <sched.h>

#include "tests/shm/actors.h"

#define ASKERS 8u
#define ROUNDS 300

static const uint32_t key_counts[] = {1, 2, 7, 50};

/* Shared by fork. */
struct board {
    shm_u32 round;   /* begun by the test */
    shm_u32 arrived; /* askers that are done with the present step, over all rounds */
    shm_u32 leaders[64];
    shm_u32 followers[64];
    shm_u32 hits[64];
    shm_u32 errors;
};

static struct board *board;

static void setup(void)
{
    fixture_open(64);
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                 -1, 0);
    ck_assert_ptr_ne(board, MAP_FAILED);
}

static void teardown(void)
{
    fixture_close();
}

static void await(shm_u32 *what, uint32_t value)
{
    while (atomic_load(what) < value)
        sched_yield();
}

static void arrive(uint32_t *step)
{
    atomic_fetch_add(&board->arrived, 1);
    await(&board->arrived, ASKERS * ++*step);
}

static void count(const struct join_result *r, uint32_t key)
{
    shm_u32 *counts = r->role == JOIN_LEADER     ? board->leaders
                      : r->role == JOIN_FOLLOWER ? board->followers
                                                 : board->hits;
    atomic_fetch_add(&counts[key], 1);
}

static struct join_result ask(uint32_t key)
{
    struct join_request req = question(key);
    struct join_result r = {.role = JOIN_FAILURE};

    enum dac_err e;

    while ((e = index_join(&shm, &req, &r)) == DAC_E_BUSY)
        sched_yield(); /* a machine under load */
    must(e, "could not ask", key);
    return r;
}

/* Each asks all keys, from its own place on, twice: while they run and when they are
 * done. */
static void ask_in_rounds(uint32_t number, uint32_t keys)
{
    struct join_result mine[64];
    uint32_t step = 0;

    for (uint32_t round = 1; round <= ROUNDS; round++) {
        await(&board->round, round);
        for (uint32_t i = 0; i < keys; i++) {
            uint32_t key = (number * round + i) % keys;
            mine[key] = ask(key);
            count(&mine[key], key);
        }
        arrive(&step);
        for (uint32_t key = 0; key < keys; key++) {
            if (mine[key].role != JOIN_LEADER)
                continue;
            must(flight_advance(&shm, mine[key].ref, FLIGHT_QUEUED), "queued", key);
            must(flight_advance(&shm, mine[key].ref, FLIGHT_FETCHING), "fetching", key);
            finish(&mine[key], TURN_COMPLETE);
        }
        arrive(&step);
        for (uint32_t key = 0; key < keys; key++) {
            struct join_result again = ask(key);
            count(&again, key);
            if (again.ref.index != mine[key].ref.index)
                atomic_fetch_add(&board->errors, 1);
        }
        arrive(&step);
        for (uint32_t key = 0; key < keys; key++)
            flight_drop_reader(&shm, mine[key].ref.index);
        arrive(&step);
    }
    _exit(0);
}

/* Says what the round came to, and clears the table for the next one. */
static void check_round(uint32_t round, uint32_t keys)
{
    for (uint32_t key = 0; key < keys; key++) {
        ck_assert_uint_eq(atomic_load(&board->leaders[key]), round);
        ck_assert_uint_eq(atomic_load(&board->followers[key]), round * (ASKERS - 1));
        ck_assert_uint_eq(atomic_load(&board->hits[key]), round * ASKERS);
    }
    ck_assert_uint_eq(atomic_load(&board->errors), 0);
    ck_assert_uint_eq(flights_in_use(), keys);
    for (uint32_t i = 0; i < shm.hdr->flight_count; i++) {
        struct flight_word w = flight_load(&shm, i);
        struct shm_flight *f = flight_at(&shm, i);
        if (w.state == FLIGHT_FREE)
            continue;
        ck_assert_int_eq(w.state, FLIGHT_DONE);
        ck_assert_uint_eq(atomic_load(&f->followers), ASKERS - 1);
        ck_assert_uint_eq(atomic_load(&f->hits), ASKERS);
        ck_assert_uint_eq(atomic_load(&f->readers), 0);
        atomic_store(&f->stored, STORED_SQLITE);
        ck_assert_int_eq(recycle((struct flight_ref){i, w.incarnation}), DAC_OK);
    }
}

START_TEST(exactly_one_leads)
{
    uint32_t keys = key_counts[_i];
    pid_t pids[ASKERS];
    uint32_t slots[ASKERS];
    int status;

    for (uint32_t i = 0; i < ASKERS; i++) {
        slots[i] = new_worker();
        pids[i] = fork_actor(slots[i]);
        if (pids[i] == 0)
            ask_in_rounds(i, keys);
    }
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        atomic_store(&board->round, round);
        while (atomic_load(&board->arrived) < ASKERS * 4 * round)
            usleep(200); /* an asker that fails runs into the time limit */
        check_round(round, keys);
    }
    for (uint32_t i = 0; i < ASKERS; i++) {
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_int_eq(status, 0);
        bury_actor(slots[i]);
    }
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 0);
    assert_nothing_leaked();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("joining at once");
    TCase *t = tcase_create("join");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 30);
    tcase_add_loop_test(t, exactly_one_leads, 0, DAC_ARRAY_LEN(key_counts));
    suite_add_tcase(s, t);
    return run_suite(s);
}
