/*
 * Death under a bucket's lock: whoever comes next finds the chain as the dead left it,
 * mends it and goes on, also if it dies over that, and also if many come at once. And the
 * loss of a lock for good: nobody gets in, but what is inside lives on and leaves.
 */
#include <errno.h>

#include "tests/shm/actors.h"

#define BUCKET 5u
#define CROWD  6u

static void setup(void)
{
    fixture_open(64);
}

static void teardown(void)
{
    fixture_close();
}

/* A key of BUCKET that differs from the others behind the hash. */
static struct join_request colliding(uint32_t n)
{
    struct join_request req = question(BUCKET);

    memcpy(req.key + 8, &n, sizeof(n));
    return req;
}

static struct join_result ask(uint32_t n)
{
    struct join_request req = colliding(n);
    struct join_result r;

    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    return r;
}

/* What a process had done to the chain of flights 2, 1, 0 when it died. */
enum deed {
    NOTHING,
    INDEXED_NOT_LINKED,
    LINKED_HALF,
    UNLINKED_STILL_NAMED,
    GARBAGE,
    DEEDS
};

static void half_a_step(enum deed deed, const struct join_result *r)
{
    struct shm_flight *newest = flight_at(&shm, r[2].ref.index);
    struct shm_flight *middle = flight_at(&shm, r[1].ref.index);

    switch (deed) {
    case INDEXED_NOT_LINKED: /* of the newest: its bucket is written, the head is not */
        atomic_store(&shm.buckets[BUCKET].head, atomic_load(&newest->next));
        atomic_store(&newest->next, 0);
        break;
    case LINKED_HALF:
        atomic_store(&shm.buckets[BUCKET].head, atomic_load(&newest->next));
        break;
    case UNLINKED_STILL_NAMED: /* chain_remove() of the middle one */
        atomic_store(&newest->next, atomic_load(&middle->next));
        break;
    case GARBAGE:
        atomic_store(&shm.buckets[BUCKET].head, 12345);
        atomic_store(&middle->next, r[2].ref.index + 1);
        break;
    default:
        break;
    }
}

static void die_under_lock(enum deed deed, const struct join_result *r)
{
    int status;
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        int rc = pthread_mutex_lock(&shm.buckets[BUCKET].lock);
        if (rc != 0 && rc != EOWNERDEAD)
            _exit(1);
        if (deed != NOTHING)
            half_a_step(deed, r);
        raise(SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void expect_whole(const struct join_result *r)
{
    char why[160];

    for (uint32_t i = 0; i < 3; i++) { /* the first to come mends it */
        struct join_result again = ask(i);
        ck_assert_int_eq(again.role, JOIN_FOLLOWER);
        ck_assert_uint_eq(again.ref.index, r[i].ref.index);
    }
    ck_assert_msg(index_valid(&shm, BUCKET, why, sizeof(why)), "%s", why);
}

START_TEST(chain_is_mended_by_the_next_one)
{
    struct join_result r[3];

    shm.self = new_worker();
    for (uint32_t i = 0; i < 3; i++)
        r[i] = ask(i);
    die_under_lock((enum deed)_i, r);
    expect_whole(r);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 1);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_timeouts), 0);
}
END_TEST

/* The second of them died before it declared the lock consistent. */
START_TEST(death_over_the_repair_changes_nothing)
{
    struct join_result r[3];

    shm.self = new_worker();
    for (uint32_t i = 0; i < 3; i++)
        r[i] = ask(i);
    for (int deaths = 0; deaths < 5; deaths++)
        die_under_lock(GARBAGE, r);
    expect_whole(r);
    for (int round = 0; round < 20; round++) {
        die_under_lock((enum deed)(round % DEEDS), r);
        expect_whole(r);
    }
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 21);
}
END_TEST

/* Several wait at the lock when its holder dies: one mends, all go on. */
START_TEST(crowd_at_the_lock_goes_on)
{
    struct join_result r[3];
    uint32_t slots[CROWD];
    pid_t pids[CROWD];
    int ready[2], status;
    char c = 0;

    shm.self = new_worker();
    for (uint32_t i = 0; i < 3; i++)
        r[i] = ask(i);
    ck_assert_int_eq(pipe(ready), 0);
    pid_t holder = fork();
    if (holder == 0) {
        pthread_mutex_lock(&shm.buckets[BUCKET].lock);
        half_a_step(GARBAGE, r);
        if (write(ready[1], &c, 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    ck_assert_int_eq(read(ready[0], &c, 1), 1);
    for (uint32_t i = 0; i < CROWD; i++) {
        slots[i] = new_worker();
        pids[i] = fork_actor(slots[i]);
        if (pids[i] == 0) {
            struct join_request req = colliding(77);
            struct join_result mine;
            enum dac_err e;
            uint64_t until = clock_now_ns() + 10 * NS_PER_S;

            while ((e = index_join(&shm, &req, &mine)) == DAC_E_BUSY &&
                   clock_now_ns() < until)
                ;
            _exit(e != DAC_OK ? 1 : mine.role == JOIN_LEADER ? 20 : 21);
        }
    }
    uint32_t waiting = 0;
    while (waiting < CROWD) {
        waiting = 0;
        for (uint32_t i = 0; i < CROWD; i++)
            waiting += atomic_load(&shm.slots[slots[i]].locking_bucket) == BUCKET + 1;
    }
    ck_assert_int_eq(kill(holder, SIGKILL), 0);
    ck_assert_int_eq(waitpid(holder, &status, 0), holder);
    uint32_t leaders = 0, followers = 0;
    for (uint32_t i = 0; i < CROWD; i++) {
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert(WIFEXITED(status));
        leaders += WEXITSTATUS(status) == 20;
        followers += WEXITSTATUS(status) == 21;
        bury_actor(slots[i]);
    }
    ck_assert_uint_eq(leaders, 1);
    ck_assert_uint_eq(followers, CROWD - 1);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 1);
    expect_whole(r);
    bury_actor(shm.self);
    assert_nothing_leaked();
}
END_TEST

/* A stopped holder blocks nobody for longer than the limit, and other buckets not at all.
 */
START_TEST(stopped_holder_costs_20_ms)
{
    int ready[2];
    char c = 0;

    shm.self = new_worker();
    ck_assert_int_eq(pipe(ready), 0);
    pid_t holder = fork();
    if (holder == 0) {
        pthread_mutex_lock(&shm.buckets[BUCKET].lock);
        if (write(ready[1], &c, 1) != 1)
            _exit(1);
        raise(SIGSTOP);
        pthread_mutex_unlock(&shm.buckets[BUCKET].lock);
        _exit(0);
    }
    ck_assert_int_eq(read(ready[0], &c, 1), 1);
    ck_assert_int_eq(waitpid(holder, NULL, WUNTRACED), holder);
    struct join_request req = colliding(1), other = question(BUCKET + 1);
    struct join_result r;
    uint64_t start = clock_now_ns();
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_E_BUSY);
    ck_assert_uint_ge(clock_now_ns() - start, BUCKET_LOCK_NS);
    ck_assert_int_eq(index_join(&shm, &other, &r), DAC_OK);
    ck_assert_int_eq(kill(holder, SIGCONT), 0);
    ck_assert_int_eq(waitpid(holder, NULL, 0), holder);
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 0);
}
END_TEST

enum meanwhile { READER_CAME, LEFT_THE_INDEX, MEANWHILES };

/* The recorder found a flight that can go; until it has the lock, a reader comes, or the
 * flight is gone. */
START_TEST(recycling_looks_again_under_the_lock)
{
    uint32_t worker = new_worker(), recorder = new_recorder();
    int status;

    shm.self = worker;
    struct join_result r = ask(1);
    struct shm_flight *f = flight_at(&shm, r.ref.index);
    end_flight(&r.ref, &r.writer, FLIGHT_FAILED, clock_now_ns());
    flight_drop_reader(&shm, r.ref.index);
    atomic_store(&f->stored, STORED_SQLITE);
    ck_assert_int_eq(pthread_mutex_lock(&shm.buckets[BUCKET].lock), 0);
    pid_t pid = fork_actor(recorder);
    if (pid == 0) {
        enum dac_err e;
        while ((e = recycle(r.ref)) == DAC_E_BUSY)
            ;
        _exit((int)e);
    }
    while (atomic_load(&shm.slots[recorder].locking_bucket) != BUCKET + 1)
        ;
    if (_i == READER_CAME)
        atomic_store(&f->readers, UINT64_C(1) << worker);
    else
        atomic_store(&f->bucket, 0);
    ck_assert_int_eq(pthread_mutex_unlock(&shm.buckets[BUCKET].lock), 0);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    /* Between two tries it may have seen the second one as what it is: left behind. */
    ck_assert(WEXITSTATUS(status) == DAC_E_STATE ||
              (_i == LEFT_THE_INDEX && WEXITSTATUS(status) == DAC_OK));
    if (_i == READER_CAME)
        ck_assert_int_eq(flight_load(&shm, r.ref.index).state, FLIGHT_FAILED);
}
END_TEST

/* --- locks that nobody can have again -------------------------------------------------
 */

/* As a process would that gives back unmended what a dead one held. */
static void lose_lock(void)
{
    pthread_mutex_t *m = &shm.buckets[BUCKET].lock;

    die_under_lock(NOTHING, NULL);
    ck_assert_int_eq(pthread_mutex_lock(m), EOWNERDEAD);
    ck_assert_int_eq(pthread_mutex_unlock(m), 0);
    ck_assert_int_eq(pthread_mutex_lock(m), ENOTRECOVERABLE);
}

static bool is_told(void)
{
    return atomic_load(&shm.hdr->lock_lost) == 1 &&
           atomic_load(&shm.buckets[BUCKET].lost) == 1 &&
           shm_counter_sum(&shm, SHM_C_locks_lost) == 1;
}

/* Until the second try the caller cannot know that nobody is inside. */
static enum dac_err twice(enum dac_err (*fn)(struct flight_ref ref),
                          struct flight_ref ref)
{
    enum dac_err e = fn(ref);

    ck_assert_int_eq(e, DAC_E_BUSY);
    return fn(ref);
}

static enum dac_err abandon(struct flight_ref ref)
{
    return index_abandon(&shm, ref);
}

static void assert_all_free(void)
{
    assert_all_valid();
    ck_assert_uint_eq(flights_in_use(), 0);
    ck_assert_uint_eq(blocks_in_use(), 0);
}

START_TEST(lost_lock_is_told_and_costs_no_wait)
{
    struct join_request req = colliding(1), other = question(BUCKET + 1);
    struct join_result r = ask(0), mine;

    (void)r;
    lose_lock();
    ck_assert_uint_eq(atomic_load(&shm.hdr->lock_lost), 0); /* nobody came by */
    uint64_t start = clock_now_ns();
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(index_join(&shm, &req, &mine), DAC_E_BUSY);
    ck_assert_uint_lt(clock_now_ns() - start, 20 * BUCKET_LOCK_NS);
    ck_assert(is_told());
    ck_assert_uint_eq(atomic_load(&shm.slots[shm.self].locking_bucket), 0);
    ck_assert_uint_eq(flights_in_use(), 1); /* no claim is left behind */
    ck_assert_int_eq(index_join(&shm, &other, &mine), DAC_OK);
    ck_assert_int_eq(mine.role, JOIN_LEADER);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 0);
}
END_TEST

/* What runs goes on to its end and leaves memory; nobody gets in. */
START_TEST(flights_of_a_lost_lock_live_and_leave)
{
    struct join_result r[3];
    struct sample sample = {.status = TURN_COMPLETE};
    char why[160];

    for (uint32_t i = 0; i < 3; i++)
        r[i] = ask(i);
    lose_lock();
    for (uint32_t i = 0; i < 3; i++) {
        struct shm_flight *f = flight_at(&shm, r[i].ref.index);

        ck_assert_int_eq(index_attach(&shm, r[i].ref, f->turn_id), DAC_E_BUSY);
        ck_assert_int_eq(flight_advance(&shm, r[i].ref, FLIGHT_QUEUED), DAC_OK);
        ck_assert_int_eq(flight_advance(&shm, r[i].ref, FLIGHT_FETCHING), DAC_OK);
        ck_assert_int_eq(blocklog_append(&shm, &r[i].writer, RECORD_DELTA, "text", 4),
                         DAC_OK);
        ck_assert_int_eq(index_abandon(&shm, r[i].ref), DAC_E_STATE); /* it is read */
        end_flight(&r[i].ref, &r[i].writer, FLIGHT_DONE, clock_now_ns());
        ck_assert_int_eq(index_put_sample(&shm, r[i].ref, &sample), DAC_OK);
        ck_assert_uint_ne(atomic_load(&f->sample), 0);
        atomic_store(&f->stored, STORED_SQLITE);
        ck_assert_int_eq(recycle(r[i].ref), DAC_E_STATE); /* read */
        ck_assert(flight_drop_reader(&shm, r[i].ref.index));
    }
    /* From the middle of the chain as well. */
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_int_eq(recycle(r[(i + 1) % 3].ref), DAC_OK);
        ck_assert_msg(index_valid(&shm, BUCKET, why, sizeof(why)), "%s", why);
    }
    ck_assert(is_told());
    bury_actor(shm.self);
    assert_all_free();
}
END_TEST

START_TEST(flight_of_a_lost_lock_is_abandoned)
{
    struct join_result r = ask(0);

    lose_lock();
    ck_assert(flight_drop_reader(&shm, r.ref.index));
    ck_assert_int_eq(twice(abandon, r.ref), DAC_OK);
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, r.ref.index)->requests),
                      FLIGHT_CLOSED);
}
END_TEST

static enum dac_err recycle_once(struct flight_ref ref)
{
    return recycle(ref);
}

/* The dead are swept, and their flights orphaned, adopted and recycled as ever. */
START_TEST(dead_owner_of_a_flight_of_a_lost_lock)
{
    struct join_result r = ask(0);
    uint32_t dead = shm.self;

    lose_lock();
    bury_actor(dead);
    ck_assert_int_eq(flight_load(&shm, r.ref.index).state, FLIGHT_ORPHANED);
    shm.self = new_worker();
    ck_assert_int_eq(flight_adopt(&shm, r.ref, FLIGHT_FETCHING), DAC_OK);
    ck_assert_int_eq(blocklog_open(&shm, r.ref, &r.writer), DAC_OK);
    end_flight(&r.ref, &r.writer, FLIGHT_FAILED, clock_now_ns());
    atomic_store(&flight_at(&shm, r.ref.index)->stored, STORED_FAILED);
    ck_assert_int_eq(twice(recycle_once, r.ref), DAC_OK);
    bury_actor(shm.self);
    assert_all_free();
}
END_TEST

/* A process may die in the moment in which it learns that a lock is lost; to the next one
 * it seems merely to be held by a dead one. Once told, it stays lost. */
START_TEST(lost_lock_is_never_found_again)
{
    struct join_request req = colliding(1);
    struct join_result mine;

    lose_lock();
    ck_assert_int_eq(index_join(&shm, &req, &mine), DAC_E_BUSY);
    for (int i = 0; i < 3; i++) {
        pthread_mutexattr_t attr;

        ck_assert_int_eq(pthread_mutexattr_init(&attr), 0);
        pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
        ck_assert_int_eq(pthread_mutex_init(&shm.buckets[BUCKET].lock, &attr), 0);
        if (i > 0)
            die_under_lock(NOTHING, NULL);
        ck_assert_int_eq(index_join(&shm, &req, &mine), DAC_E_BUSY);
    }
    ck_assert_int_eq(pthread_mutex_lock(&shm.buckets[BUCKET].lock), ENOTRECOVERABLE);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_lock_recoveries), 0);
    ck_assert(is_told());
}
END_TEST

/* Many that find out at once tell it once. */
START_TEST(crowd_at_a_lost_lock)
{
    uint32_t slots[CROWD];
    pid_t pids[CROWD];
    int status;

    lose_lock();
    for (uint32_t i = 0; i < CROWD; i++) {
        slots[i] = new_worker();
        pids[i] = fork_actor(slots[i]);
        if (pids[i] == 0) {
            struct join_request req = colliding(i % 2);
            struct join_result mine;
            int busy = 0;

            for (int n = 0; n < 2000; n++)
                busy += index_join(&shm, &req, &mine) == DAC_E_BUSY;
            _exit(busy == 2000 ? 0 : 1);
        }
    }
    for (uint32_t i = 0; i < CROWD; i++) {
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_int_eq(status, 0);
        bury_actor(slots[i]);
    }
    ck_assert(is_told());
    ck_assert_uint_eq(flights_in_use(), 0);
}
END_TEST

static void setup_worker(void)
{
    setup();
    shm.self = new_worker();
}

int main(void)
{
    Suite *s = suite_create("death under a lock");
    TCase *t = tcase_create("locks");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 20);
    tcase_add_loop_test(t, chain_is_mended_by_the_next_one, 0, DEEDS);
    tcase_add_test(t, death_over_the_repair_changes_nothing);
    tcase_add_test(t, crowd_at_the_lock_goes_on);
    tcase_add_test(t, stopped_holder_costs_20_ms);
    tcase_add_loop_test(t, recycling_looks_again_under_the_lock, 0, MEANWHILES);
    suite_add_tcase(s, t);

    t = tcase_create("lost");
    tcase_add_checked_fixture(t, setup_worker, teardown);
    tcase_set_timeout(t, 20);
    tcase_add_test(t, lost_lock_is_told_and_costs_no_wait);
    tcase_add_test(t, flights_of_a_lost_lock_live_and_leave);
    tcase_add_test(t, flight_of_a_lost_lock_is_abandoned);
    tcase_add_test(t, dead_owner_of_a_flight_of_a_lost_lock);
    tcase_add_test(t, lost_lock_is_never_found_again);
    tcase_add_test(t, crowd_at_a_lost_lock);
    suite_add_tcase(s, t);
    return run_suite(s);
}
