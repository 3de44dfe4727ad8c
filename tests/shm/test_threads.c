/*
 * Workers and a recorder as threads of one process, each with its own view of the
 * segment: for ThreadSanitizer, which does not see across processes. Without it this is
 * one more load.
 */
#define FIXTURE_THREADS
#include <pthread.h>

#include "tests/shm/actors.h"

#define WORKERS 4
#define RUN_NS  (2 * NS_PER_S)

struct actor {
    pthread_t thread;
    struct shm view;
    unsigned seed;
    uint64_t until_ns;
    bool recorder;
};

static struct actor actors[WORKERS + 1];

#ifdef __SANITIZE_THREAD__
/* It does not know pthread_mutex_clocklock() and takes what that locked for unlocked. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "report_mutex_bugs=0";
}
#endif

static void setup(void)
{
    fixture_open(24);
}

static void teardown(void)
{
    fixture_close();
}

static void *act(void *arg)
{
    struct actor *a = arg;

    shm = a->view;
    slot_enter(&shm, clock_now_ns());
    slot_set_state(&shm, SLOT_READY);
    while (clock_now_ns() < a->until_ns) {
        if (!a->recorder) {
            worker_step(&a->seed);
            continue;
        }
        actor_sleep(ACTOR_PAUSE);
        recorder_step(roll(&a->seed, 4) ? RECYCLE_EXPIRED : RECYCLE_PRESSURE);
    }
    return NULL;
}

START_TEST(threads_as_processes)
{
    uint64_t until = clock_now_ns() + RUN_NS;

    for (unsigned i = 0; i < DAC_ARRAY_LEN(actors); i++) {
        struct actor *a = &actors[i];
        a->recorder = i == WORKERS;
        a->view = shm;
        a->view.self = a->recorder ? new_recorder() : new_worker();
        a->seed = i + 1;
        a->until_ns = until;
        ck_assert_int_eq(pthread_create(&a->thread, NULL, act, a), 0);
    }
    for (size_t i = 0; i < DAC_ARRAY_LEN(actors); i++)
        ck_assert_int_eq(pthread_join(actors[i].thread, NULL), 0);
    ck_assert_uint_gt(shm_counter_sum(&shm, SHM_C_requests), 100);
    for (size_t i = 0; i < DAC_ARRAY_LEN(actors); i++)
        bury_actor(actors[i].view.self);
    assert_nothing_leaked();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("threads as processes");
    TCase *t = tcase_create("threads");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 30);
    tcase_add_test(t, threads_as_processes);
    suite_add_tcase(s, t);
    return run_suite(s);
}
