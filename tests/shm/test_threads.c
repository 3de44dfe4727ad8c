/*
 * Workers, a recorder and the master as threads of one process, each with its own view of
 * the segment: for ThreadSanitizer, which does not see across processes. Without it this
 * is one more load.
 *
 * First all live: joining, leaving, cancelling, the pacer, wake-ups, recycling. Then
 * workers end in the middle of what they do: the master buries them and starts others,
 * readers take their flights over while the recorder wants to end them, and an onlooker
 * checks everything that can be checked on a living segment. A thread ends between two
 * steps only: inside of one is for tests of processes.
 */
#define FIXTURE_THREADS
#include <pthread.h>

#include "shm/verify.h"
#include "tests/shm/actors.h"

#define WORKERS  4
#define RUN_NS   (2 * NS_PER_S)
#define PATIENCE 40 /* looks of a reader at a flight in which nothing happens */

struct actor {
    pthread_t thread;
    struct shm view;
    unsigned seed;
    uint64_t until_ns;
    bool recorder;
    _Atomic bool gone; /* it ended, or is about to */
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
    open_ledger();
}

static void teardown(void)
{
    close_ledger();
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

/* --- deaths ---------------------------------------------------------------------------
 */

static _Thread_local struct actor *self;
static _Atomic uint32_t deaths, takeovers;
static _Atomic bool over; /* all end at their next step */

/* Once in a while the calling thread ends here, with all that it has in hand. */
static void maybe_die(void)
{
    if (roll(&self->seed, 40) != 0)
        return;
    atomic_fetch_add(&deaths, 1);
    atomic_store(&self->gone, true);
    pthread_exit(NULL);
}

static void mark(void *arg, uint32_t flight)
{
    (void)arg;
    if (flight >= shm.hdr->flight_count)
        actor_bad("a wake-up for no flight", flight);
}

static void look_around(void)
{
    actor_sleep(ACTOR_PAUSE);
    wake_take(&shm, mark, NULL);
    slot_beat(&shm, clock_now_ns());
}

/* Texts and END, from FETCHING on, with a permit. */
static void answer(struct join_result *r)
{
    enum turn_status status = TURN_COMPLETE;
    uint32_t permit = wait_for_permit(r);

    maybe_die();
    must(flight_advance(&shm, r->ref, FLIGHT_STREAMING), "not streaming", r->ref.index);
    for (uint32_t n = roll(&self->seed, 6); n > 0 && status == TURN_COMPLETE; n--) {
        put_text(r, &self->seed);
        maybe_die();
        if (asked_to_stop(r))
            status = TURN_CANCELLED;
    }
    finish(r, permit == PACER_NO_PERMIT ? TURN_FAILED : status);
    maybe_die();
    pacer_give(&shm, 0, permit, r->ref);
}

static void lead_or_die(struct join_result *r)
{
    maybe_die();
    must(blocklog_append(&shm, &r->writer, RECORD_REQUEST, "{}", 2), "no room",
         r->ref.index);
    must(flight_advance(&shm, r->ref, FLIGHT_QUEUED), "not queued", r->ref.index);
    maybe_die();
    must(flight_advance(&shm, r->ref, FLIGHT_FETCHING), "not fetching", r->ref.index);
    answer(r);
}

/* A reader takes an orphan over, unless another one or the recorder was quicker. */
static void take_over(struct join_result *r)
{
    struct shm_flight *f = flight_at(&shm, r->ref.index);
    struct record_reset reset = {0};

    if (flight_adopt(&shm, r->ref, FLIGHT_FETCHING) != DAC_OK)
        return;
    atomic_fetch_add(&takeovers, 1);
    maybe_die();
    if (blocklog_open(&shm, r->ref, &r->writer) != DAC_OK ||
        blocklog_append(&shm, &r->writer, RECORD_RESET, &reset, sizeof(reset)) !=
            DAC_OK) {
        atomic_store(&self->gone, true); /* no room: as good as dead */
        pthread_exit(NULL);
    }
    atomic_store_explicit(&f->start, r->writer.offset, memory_order_release);
    wake_readers(&shm, r->ref.index);
    answer(r);
}

static void follow_or_take_over(struct join_result *r)
{
    struct blocklog_cursor c;
    struct blocklog_record rec;
    bool ended = false;

    blocklog_rewind(&c, r->ref);
    for (uint32_t i = 0; i < PATIENCE && !ended; i++) {
        enum dac_err e;

        while ((e = blocklog_peek(&shm, &c, &rec)) == DAC_OK) {
            check_record(r, &c, &rec);
            ended = rec.type == RECORD_END;
            blocklog_next(&shm, &c, &rec);
        }
        if (e == DAC_E_CORRUPT)
            actor_bad("corrupt log", r->ref.index);
        maybe_die();
        if (!ended && flight_load(&shm, r->ref.index).state == FLIGHT_ORPHANED)
            take_over(r);
        else if (!ended)
            look_around();
    }
    if (!ended && flight_ask_cancel(&shm, r->ref.index))
        wake_owner(&shm, r->ref.index);
}

/* Asks, by a name or without one. */
static void mortal_step(void)
{
    struct join_result r;
    enum dac_err e = actor_join(&r, &self->seed);

    if (e == DAC_E_BUSY || e == DAC_E_FULL || e == DAC_E_EXISTS || e == DAC_E_NOT_FOUND) {
        look_around();
        return;
    }
    must(e, "could not join", 0);
    if (r.role == JOIN_LEADER)
        lead_or_die(&r);
    else
        follow_or_take_over(&r);
    if (flight_drop_reader(&shm, r.ref.index))
        wake_owner(&shm, r.ref.index);
    shm_count(&shm, SHM_C_requests, 1);
}

static void *act_until_death(void *arg)
{
    self = arg;
    shm = self->view;
    slot_enter(&shm, clock_now_ns());
    slot_set_state(&shm, SLOT_READY);
    while (!atomic_load(&over)) {
        if (!self->recorder) {
            mortal_step();
            continue;
        }
        look_around();
        recorder_step(roll(&self->seed, 4) ? RECYCLE_EXPIRED : RECYCLE_PRESSURE);
    }
    atomic_store(&self->gone, true);
    return NULL;
}

static void start(struct actor *a)
{
    a->view = shm;
    a->view.self = a->recorder ? new_recorder() : new_worker();
    atomic_store(&a->gone, false);
    ck_assert_int_eq(pthread_create(&a->thread, NULL, act_until_death, a), 0);
}

static void expect_nothing(void *ctx, const struct verify_finding *f)
{
    (void)ctx;
    if (f->certain && !f->note)
        ck_abort_msg("%s %u: %s", f->object, f->index, f->words);
}

/* What the master does beside burying, and what dacctl and /metrics read. */
static void master_step(void)
{
    static struct sample samples[64];
    struct verify_view view = {
        .shm = &shm, .live = true, .master = true, .now_ns = clock_now_ns()};

    pacer_set_limits(&shm, 0, 1e6, 1000, FIXTURE_CONCURRENCY);
    slot_recount(&shm);
    verify_pass(&view, expect_nothing, NULL);
    (void)sample_read(&shm, samples, DAC_ARRAY_LEN(samples));
    (void)shm_counter_sum(&shm, SHM_C_requests);
}

START_TEST(threads_that_die)
{
    uint64_t began = clock_now_ns();
    uint64_t orphaned;

    shm.self = SHM_NO_SLOT;
    for (unsigned i = 0; i < DAC_ARRAY_LEN(actors); i++) {
        actors[i].recorder = i == WORKERS;
        actors[i].seed = i + 1;
        start(&actors[i]);
    }
    /* A slow machine gets more time to come to what is meant. */
    while (clock_now_ns() - began < RUN_NS ||
           (atomic_load(&takeovers) < 3 && clock_now_ns() - began < 8 * RUN_NS)) {
        usleep(500);
        master_step();
        for (size_t i = 0; i < DAC_ARRAY_LEN(actors); i++) {
            if (!atomic_load(&actors[i].gone))
                continue;
            ck_assert_int_eq(pthread_join(actors[i].thread, NULL), 0);
            bury_actor(actors[i].view.self);
            start(&actors[i]);
        }
    }
    atomic_store(&over, true);
    for (size_t i = 0; i < DAC_ARRAY_LEN(actors); i++)
        ck_assert_int_eq(pthread_join(actors[i].thread, NULL), 0);
    for (size_t i = 0; i < DAC_ARRAY_LEN(actors); i++)
        bury_actor(actors[i].view.self);
    orphaned = shm_counter_sum(&shm, SHM_C_flights_orphaned);
    printf("%u deaths, %llu flights orphaned, %u taken over, %llu questions\n",
           atomic_load(&deaths), (unsigned long long)orphaned, atomic_load(&takeovers),
           (unsigned long long)shm_counter_sum(&shm, SHM_C_requests));
    ck_assert_uint_gt(atomic_load(&deaths), 5);
    ck_assert_uint_gt(orphaned, 2);
    ck_assert_uint_gt(atomic_load(&takeovers), 2);
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
    tcase_add_test(t, threads_that_die);
    suite_add_tcase(s, t);
    return run_suite(s);
}
