/*
 * Several processes create, hold, lose and replace one segment at the same time: at any
 * moment at most one has it, and a killed holder's is replaced. A living holder that
 * replaces its own keeps it throughout.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>

#include "tests/shm/segment_fixture.h"

#define STARTERS 6
#define RUN_NS   (3 * NS_PER_S)

/* Shared by fork. */
struct board {
    shm_u32 holder; /* pid that has the segment, 0: none */
    shm_u32 held;   /* times it was had */
    shm_u32 twice;  /* times two had it */
    shm_u32 other;  /* times it was another's */
    shm_u32 odd;    /* errors but EXISTS and SYS */
    shm_u32 replaced;
};

static struct board *board;

static void setup(void)
{
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                 -1, 0);
    ck_assert_ptr_ne(board, MAP_FAILED);
    fixture_name("create");
}

static void teardown(void)
{
    shm_unlink(shm_name);
}

/* Holds it for a moment; `die` ends this process with it in hand. */
static void hold(bool die)
{
    uint32_t none = 0;
    uint32_t me = (uint32_t)getpid();

    atomic_fetch_add(&board->held, 1);
    if (!atomic_compare_exchange_strong(&board->holder, &none, me))
        atomic_fetch_add(&board->twice, 1);
    sched_yield();
    if (atomic_load(&shm.hdr->master_pid) != me)
        atomic_fetch_add(&board->other, 1);
    atomic_compare_exchange_strong(&board->holder, &me, 0);
    if (die)
        raise(SIGKILL);
    segment_destroy(&shm);
}

static void start_again_and_again(unsigned seed)
{
    uint64_t until = clock_now_ns() + RUN_NS;
    struct shm_options opt = fixture_options(shm_name, 1);
    char why[256];
    bool replaced;

    opt.flight_max_bytes = 4096;
    opt.size = UINT64_C(2) << 20;
    while (clock_now_ns() < until) {
        enum dac_err e = segment_create(&opt, &shm, &replaced, why, sizeof(why));
        if (e == DAC_OK) {
            atomic_fetch_add(&board->replaced, replaced);
            hold(rand_r(&seed) % 4 == 0);
        } else if (e != DAC_E_EXISTS && e != DAC_E_SYS) {
            atomic_fetch_add(&board->odd, 1);
        }
    }
}

START_TEST(at_most_one_has_it)
{
    uint64_t until = clock_now_ns() + RUN_NS;
    unsigned living = 0;

    for (unsigned n = 0; living > 0 || clock_now_ns() < until; n++) {
        while (living < STARTERS && clock_now_ns() < until) {
            pid_t pid = fork();
            ck_assert_int_ge(pid, 0);
            if (pid == 0) {
                start_again_and_again(n++);
                _exit(0);
            }
            living++;
            n++;
        }
        ck_assert_int_gt(wait(NULL), 0);
        living--;
    }
    ck_assert_uint_eq(atomic_load(&board->twice), 0);
    ck_assert_uint_eq(atomic_load(&board->other), 0);
    ck_assert_uint_eq(atomic_load(&board->odd), 0);
    ck_assert_uint_gt(atomic_load(&board->held), 50);
    ck_assert_uint_gt(atomic_load(&board->replaced), 5);
}
END_TEST

/* Looks the name up, and tries to get the segment, again and again. */
static void knock(void)
{
    struct shm_options opt = fixture_options(shm_name, 1);
    struct shm seen;
    char why[256];
    bool replaced;

    for (;;) {
        enum dac_err e = segment_create(&opt, &shm, &replaced, why, sizeof(why));

        if (e == DAC_OK)
            atomic_fetch_add(&board->twice, 1);
        if (e == DAC_OK || segment_attach(shm_name, &seen, why, sizeof(why)) != DAC_OK) {
            atomic_fetch_add(&board->odd, 1);
            fprintf(stderr, "%s\n", why);
            return;
        }
        atomic_fetch_add(&board->held, 1);
        segment_detach(&seen);
    }
}

START_TEST(renewed_without_a_gap)
{
    struct shm_options opt = fixture_options(shm_name, 1);
    uint64_t until = clock_now_ns() + RUN_NS;
    pid_t pids[STARTERS];
    struct shm next;
    char why[256];
    bool replaced;
    unsigned renewals = 0;

    opt.flight_max_bytes = 4096;
    opt.size = UINT64_C(2) << 20;
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_OK);
    for (int i = 0; i < STARTERS; i++) {
        pids[i] = fork();
        ck_assert_int_ge(pids[i], 0);
        if (pids[i] == 0) {
            segment_enter_child(&shm, 0);
            knock();
            _exit(0);
        }
    }
    while (clock_now_ns() < until) {
        ck_assert_msg(segment_create_next(&opt, &next, why, sizeof(why)) == DAC_OK, "%s",
                      why);
        ck_assert_int_eq(segment_take_name(&next), DAC_OK);
        segment_destroy(&shm);
        shm = next;
        renewals++;
    }
    for (int i = 0; i < STARTERS; i++) {
        kill(pids[i], SIGKILL);
        waitpid(pids[i], NULL, 0);
    }
    segment_destroy(&shm);
    ck_assert_uint_eq(atomic_load(&board->twice), 0);
    ck_assert_uint_eq(atomic_load(&board->odd), 0);
    ck_assert_uint_gt(atomic_load(&board->held), 100);
    ck_assert_uint_gt(renewals, 20);
}
END_TEST

/* A child that only inherited the segment does not keep it from being replaced. */
START_TEST(killed_masters_segment_is_replaced_beside_its_children)
{
    struct shm_options opt = fixture_options(shm_name, 4);
    char why[256];
    bool replaced;
    int ready[2];
    char c;

    ck_assert_int_eq(pipe(ready), 0);
    pid_t master = fork();
    ck_assert_int_ge(master, 0);
    if (master == 0) {
        if (segment_create(&opt, &shm, &replaced, why, sizeof(why)) != DAC_OK)
            _exit(1);
        pid_t child = fork();
        if (child == 0) {
            segment_enter_child(&shm, 0);
            pid_t me = getpid();
            if (write(ready[1], &me, sizeof(me)) != sizeof(me))
                _exit(1);
            for (;;)
                pause();
        }
        for (;;)
            pause();
    }
    pid_t child;
    ck_assert_int_eq(read(ready[0], &child, sizeof(child)), sizeof(child));
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)),
                     DAC_E_EXISTS);
    char pid_text[16];
    snprintf(pid_text, sizeof(pid_text), "%d", (int)master);
    ck_assert_ptr_nonnull(strstr(why, pid_text));
    ck_assert_int_eq(kill(master, SIGKILL), 0);
    ck_assert_int_eq(waitpid(master, NULL, 0), master);
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_OK);
    ck_assert(replaced);
    ck_assert_int_eq(kill(child, SIGKILL), 0);
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &c, 1), 0); /* it is gone */
    close(ready[0]);
    segment_destroy(&shm);
    ck_assert_int_eq(segment_attach(shm_name, &shm, why, sizeof(why)), DAC_E_NOT_FOUND);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("creating the segment");
    TCase *t = tcase_create("create");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 20);
    tcase_add_test(t, at_most_one_has_it);
    tcase_add_test(t, renewed_without_a_gap);
    tcase_add_test(t, killed_masters_segment_is_replaced_beside_its_children);
    suite_add_tcase(s, t);
    return run_suite(s);
}
