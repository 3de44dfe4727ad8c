/*
 * No wake-up is lost: sleepers that look only when their eventfd says so, wakers that
 * write it only when nobody has, and a reader that joins in the very moment in which
 * something is published.
 */
#include <sched.h>

#include "tests/shm/actors.h"

#define DEADLINE_MS 5000
#define RUN_NS      (2 * NS_PER_S)
#define WAKERS      3u

/* Shared by fork; one line each. */
struct board {
    SHM_ALIGNED shm_u64 ball;
    SHM_ALIGNED shm_u64 said[WAKERS];
    SHM_ALIGNED shm_u64 go;
    SHM_ALIGNED shm_u64 done;
    SHM_ALIGNED shm_u64 unread;
    SHM_ALIGNED shm_u32 stop;
};

static struct board *board;
static uint32_t slots[WAKERS + 1];

static void setup(void)
{
    fixture_open(256);
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                 -1, 0);
    ck_assert_ptr_ne(board, MAP_FAILED);
    for (size_t i = 0; i < DAC_ARRAY_LEN(slots); i++)
        slots[i] = new_worker();
}

static void teardown(void)
{
    fixture_close();
}

/* Which flights the last look found. */
static uint64_t dirty[4];

static void note(void *arg, uint32_t flight)
{
    (void)arg;
    dirty[flight / 64] |= UINT64_C(1) << flight % 64;
}

static bool sleep_and_look(int ms)
{
    bool woken = actor_sleep(ms);

    wake_take(&shm, note, NULL);
    return woken;
}

/* --- two take turns ----------------------------------------------------------------- */

/* Waits for its number, says the next one; false: nobody woke it. */
static bool play(uint64_t first, uint64_t until_ns, uint32_t partner)
{
    for (uint64_t want = first;; want += 2) {
        while (atomic_load_explicit(&board->ball, memory_order_relaxed) < want) {
            if (atomic_load(&board->stop))
                return true;
            if (!sleep_and_look(DEADLINE_MS))
                return false;
        }
        if (clock_now_ns() > until_ns)
            atomic_store(&board->stop, 1);
        atomic_store_explicit(&board->ball, want + 1, memory_order_relaxed);
        wake_slot(&shm, partner, (uint32_t)(want % 256));
    }
}

START_TEST(two_take_turns)
{
    uint64_t until = clock_now_ns() + RUN_NS;
    int status;

    pid_t pid = fork_actor(slots[1]);
    if (pid == 0)
        _exit(play(1, until, slots[0]) ? 0 : ACTOR_BAD);
    shm.self = slots[0];
    bool fine = play(0, until, slots[1]);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(fine && status == 0, "a wake-up was lost at %llu",
                  (unsigned long long)atomic_load(&board->ball));
    ck_assert_uint_gt(atomic_load(&board->ball), 1000);
}
END_TEST

/* --- many wake one ------------------------------------------------------------------ */

/* Each waker counts in its own word and marks its own flight. */
static void wake_again_and_again(uint32_t number)
{
    uint64_t until = clock_now_ns() + RUN_NS;
    unsigned seed = number;

    for (uint64_t n = 1; clock_now_ns() < until; n++) {
        atomic_store_explicit(&board->said[number], n, memory_order_relaxed);
        wake_slot(&shm, slots[WAKERS], number * 100);
        if (roll(&seed, 3) == 0)
            usleep(roll(&seed, 60));
    }
    _exit(0);
}

/* A dirty bit that was taken shows at least what stood there when it was set; so when all
 * bits are taken and the wakers are gone, the last look saw the last words. */
START_TEST(one_hears_many)
{
    uint64_t until = clock_now_ns() + RUN_NS;
    uint64_t seen[WAKERS] = {0};
    uint32_t looks = 0;
    pid_t pids[WAKERS];

    for (uint32_t i = 0; i < WAKERS; i++) {
        pids[i] = fork_actor(slots[i]);
        if (pids[i] == 0)
            wake_again_and_again(i);
    }
    shm.self = slots[WAKERS];
    /* While they wake, no look may be late: they do so every few microseconds. */
    while (clock_now_ns() + 100 * NS_PER_MS < until) {
        ck_assert_msg(sleep_and_look(DEADLINE_MS), "nobody woke the sleeper");
        looks++;
        for (uint32_t i = 0; i < WAKERS; i++)
            if (dirty[i * 100 / 64] >> i * 100 % 64 & 1)
                seen[i] = atomic_load_explicit(&board->said[i], memory_order_relaxed);
        memset(dirty, 0, sizeof(dirty));
    }
    for (uint32_t i = 0; i < WAKERS; i++)
        ck_assert_int_eq(waitpid(pids[i], NULL, 0), pids[i]);
    /* What came behind the last look is waiting, flag, bit and eventfd. */
    bool news = false;
    for (uint32_t i = 0; i < WAKERS; i++)
        news = news || atomic_load(&board->said[i]) != seen[i];
    ck_assert(news);
    ck_assert(sleep_and_look(0));
    for (uint32_t i = 0; i < WAKERS; i++)
        if (atomic_load(&board->said[i]) != seen[i])
            ck_assert_msg(dirty[i * 100 / 64] >> i * 100 % 64 & 1, "waker %u: no bit", i);
    ck_assert_uint_gt(looks, 1000);
}
END_TEST

/* --- joining while something is published ------------------------------------------- */

/* The reader's side of each round: sets its bit, looks at the tail; as set_reader() does
 * it, but without the lock around, which would keep the two steps too far apart for the
 * race. */
static void join_again_and_again(struct flight_ref ref)
{
    struct shm_flight *f = flight_at(&shm, ref.index);
    struct blocklog_cursor c;
    uint64_t go;

    blocklog_rewind(&c, ref);
    for (uint64_t round = 1;; round++) {
        while ((go = atomic_load(&board->go)) < round)
            ;
        if (go == UINT64_MAX)
            _exit(0);
        for (volatile uint32_t i = round % 97; i > 0; i--)
            ;
        atomic_fetch_or_explicit(&f->readers, UINT64_C(1) << shm.self,
                                 memory_order_acq_rel);
        atomic_thread_fence(memory_order_seq_cst);
        atomic_store(&board->unread, blocklog_unread(&shm, &c));
        atomic_store(&board->done, round);
    }
}

static bool one_round(uint64_t round, const struct join_result *lead)
{
    struct shm_flight *f = flight_at(&shm, lead->ref.index);
    struct blocklog_writer w = lead->writer;
    uint32_t joiner = slots[1];

    atomic_fetch_and(&f->readers, ~(UINT64_C(1) << joiner));
    atomic_store(&shm.dirty[joiner * shm.hdr->dirty_words], 0);
    atomic_store(&shm.slots[joiner].notified, 1); /* no system call in this race */
    atomic_store(&f->tail, 0);
    atomic_store(&board->go, round);
    for (volatile uint32_t i = round % 31; i > 0; i--)
        ;
    must(blocklog_append(&shm, &w, RECORD_DELTA, "x", 1), "could not append", 0);
    wake_readers(&shm, lead->ref.index);
    while (atomic_load(&board->done) < round)
        ;
    bool told = atomic_load(&shm.dirty[joiner * shm.hdr->dirty_words]) != 0;
    bool saw = atomic_load(&board->unread) != 0;
    return told || saw;
}

START_TEST(joiner_sees_it_or_is_told)
{
    uint64_t until = clock_now_ns() + RUN_NS;
    struct join_request req = question(1);
    struct join_result lead;
    uint32_t lost = 0;
    uint64_t round = 0;

    shm.self = slots[0];
    ck_assert_int_eq(index_join(&shm, &req, &lead), DAC_OK);
    pid_t pid = fork_actor(slots[1]);
    if (pid == 0)
        join_again_and_again(lead.ref);
    while (clock_now_ns() < until)
        lost += !one_round(++round, &lead);
    atomic_store(&board->go, UINT64_MAX);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    ck_assert_msg(lost == 0, "%u of %llu rounds were lost", lost,
                  (unsigned long long)round);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("wake-up");
    TCase *t = tcase_create("wake");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 30);
    tcase_add_test(t, two_take_turns);
    tcase_add_test(t, one_hears_many);
    tcase_add_test(t, joiner_sees_it_or_is_told);
    suite_add_tcase(s, t);
    return run_suite(s);
}
