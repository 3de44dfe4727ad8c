/*
 * Workers and a recorder at full speed, one of them killed every few milliseconds at
 * whatever it is doing; then all of them. Nobody reads a byte of another turn, and at the
 * end every structure is valid and nothing is held by a dead process.
 */
#include "tests/shm/actors.h"

#define WORKERS     4
#define KILLS_LEAST 20

static const struct {
    uint32_t pace_us;
    uint64_t run_ns;
    uint32_t kills_max;
} runs[] = {{0, 3 * NS_PER_S, UINT32_MAX}, {400, 5 * NS_PER_S, 2000}};

struct actor {
    pid_t pid;
    uint32_t slot;
    bool recorder;
};

static struct actor actors[WORKERS + 1];

static void setup(void)
{
    fixture_open(24);
    open_ledger();
}

static void teardown(void)
{
    close_ledger();
    fixture_close();
}

static void start(struct actor *a, unsigned seed)
{
    a->slot = a->recorder ? new_recorder() : new_worker();
    a->pid = fork_actor(a->slot);
    if (a->pid != 0)
        return;
    for (;;) {
        if (a->recorder) {
            actor_sleep(ACTOR_PAUSE);
            recorder_step(roll(&seed, 4) ? RECYCLE_EXPIRED : RECYCLE_PRESSURE);
        } else {
            worker_step(&seed);
        }
    }
}

static struct slot_sweep kill_actor(struct actor *a)
{
    int status;

    ck_assert_int_eq(kill(a->pid, SIGKILL), 0);
    ck_assert_int_eq(waitpid(a->pid, &status, 0), a->pid);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
                  "an actor ended with status %x", (unsigned)status);
    return bury_actor(a->slot);
}

/* What one load decides holds at any moment. */
static void check_live(void)
{
    char why[160];

    for (uint32_t i = 0; i < shm.hdr->flight_count; i++)
        ck_assert_msg(flight_valid(&shm, i, false, why, sizeof(why)), "%s", why);
    for (uint32_t i = 0; i < shm.hdr->alias_count; i++)
        ck_assert_msg(alias_valid(&shm, i, false, why, sizeof(why)), "%s", why);
    ck_assert_msg(pacer_valid(&shm, 0, false, why, sizeof(why)), "%s", why);
    for (uint32_t i = 0; i < SHM_SLOTS; i++)
        ck_assert_msg(slot_valid(&shm, i, why, sizeof(why)), "%s", why);
}

START_TEST(random_kills_leak_nothing)
{
    uint64_t until = clock_now_ns() + runs[_i].run_ns;
    unsigned seed = (unsigned)getpid();
    struct slot_sweep sum = {0};
    uint32_t kills = 0;
    uint32_t locks = 0;

    actor_pace_us = runs[_i].pace_us;
    actors[WORKERS].recorder = true;
    for (size_t i = 0; i < DAC_ARRAY_LEN(actors); i++)
        start(&actors[i], seed++);
    while (kills < runs[_i].kills_max && clock_now_ns() < until) {
        struct actor *victim = &actors[roll(&seed, DAC_ARRAY_LEN(actors))];

        usleep(roll(&seed, 2000));
        struct slot_sweep swept = kill_actor(victim);
        sum.orphaned += swept.orphaned;
        sum.freed += swept.freed;
        sum.permits += swept.permits;
        locks += swept.held_lock;
        kills++;
        if (kills % 16 == 0) {
            slot_recount(&shm);
            check_live();
        }
        start(victim, seed++);
    }
    for (size_t i = 0; i < DAC_ARRAY_LEN(actors); i++)
        kill_actor(&actors[i]);
    fprintf(stderr,
            "%u kills: %u flights orphaned, %u claims freed, %u permits, %u at a lock; "
            "%llu questions, %llu names bound, %llu locks repaired\n",
            kills, sum.orphaned, sum.freed, sum.permits, locks,
            (unsigned long long)shm_counter_sum(&shm, SHM_C_requests),
            (unsigned long long)shm_counter_sum(&shm, SHM_C_idempotency_keys_bound),
            (unsigned long long)shm_counter_sum(&shm, SHM_C_lock_recoveries));
    ck_assert_uint_ge(kills, KILLS_LEAST);
    ck_assert_uint_gt(sum.orphaned + sum.permits, 0);
    ck_assert_uint_gt(shm_counter_sum(&shm, SHM_C_requests), kills);
    ck_assert_uint_gt(shm_counter_sum(&shm, SHM_C_idempotency_keys_bound), kills);
    assert_nothing_leaked();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("random kills");
    TCase *t = tcase_create("kills");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, random_kills_leak_nothing, 0, DAC_ARRAY_LEN(runs));
    suite_add_tcase(s, t);
    return run_suite(s);
}
