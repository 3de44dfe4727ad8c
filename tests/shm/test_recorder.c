/*
 * The recorder as a process of its own: what it stores, how it ends what lost its
 * fetcher, what it frees, and that its death costs nothing. The test is master and worker
 * in one.
 */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config.h"
#include "base/clock.h"
#include "flight/request.h"
#include "process/recorder.h"
#include "shm/blocklog.h"
#include "shm/index.h"
#include "shm/sample.h"
#include "shm/slot.h"
#include "shm/timing.h"
#include "shm/wake.h"

#define FLIGHTS 64

static char folder[] = "/tmp/dac-recorder-XXXXXX";
static char path[64];
static char name[40];
static struct config config;
static struct listeners listeners;
static struct privileges privileges;
static struct shm shm;
static uint32_t worker_slot;
static uint32_t recorder_slot;
static pid_t recorder;
static int reports[2];
static unsigned asked;

/* --- the world around it
 * ---------------------------------------------------------------- */

static void start_recorder(const char *crash_at)
{
    struct child_context ctx = {.shm = &shm,
                                .config = &config,
                                .listeners = &listeners,
                                .privileges = &privileges,
                                .master_pid = getpid(),
                                .report_fd = reports[1],
                                .kind = SLOT_RECORDER};

    ck_assert_int_eq(slot_take(&shm, SLOT_RECORDER, 0, &recorder_slot), DAC_OK);
    ctx.slot = recorder_slot;
    recorder = fork();
    ck_assert_int_ge(recorder, 0);
    if (recorder == 0) {
        if (crash_at)
            setenv("DAC_CRASH_AT", crash_at, 1);
        int rc = child_enter(&ctx);
        exit(rc == EXIT_OK ? recorder_run(&ctx) : rc);
    }
}

static int reap_recorder(void)
{
    int status;

    ck_assert_int_eq(waitpid(recorder, &status, 0), recorder);
    slot_sweep(&shm, recorder_slot);
    wake_kick(&shm);
    recorder = 0;
    return status;
}

static void setup(void)
{
    struct shm_provider_limits provider = {.name = "p", .burst = 1, .concurrency = 4};
    struct shm_options opt = {.name = name,
                              .size = 16u << 20,
                              .max_flights = FLIGHTS,
                              .flight_max_bytes = 1u << 20,
                              .providers = &provider,
                              .provider_count = 1,
                              .owner_uid = geteuid(),
                              .owner_gid = getegid()};
    char why[256];
    bool replaced;

    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/dac.db", folder);
    snprintf(name, sizeof(name), "dactest-recorder-%d", (int)getpid());
    config.sqlite = path;
    config.done_timeout_ns = 5 * NS_PER_S;
    config.drain_timeout_ns = NS_PER_S;
    config.error_ttl_ns = 100 * NS_PER_MS;
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_OK);
    ck_assert_int_eq(pipe(reports), 0);
    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, 0, &worker_slot), DAC_OK);
    shm.self = worker_slot;
    slot_enter(&shm, clock_now_ns());
}

static void teardown(void)
{
    char command[128];

    if (recorder > 0) {
        kill(recorder, SIGKILL);
        waitpid(recorder, NULL, 0);
    }
    segment_destroy(&shm);
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

static void pause_ms(unsigned ms)
{
    usleep(ms * 1000);
}

/* Waits for `stored`, at most ten seconds. */
static enum flight_stored await_stored(struct flight_ref ref)
{
    for (int i = 0; i < 2000; i++) {
        uint32_t stored = atomic_load(&flight_at(&shm, ref.index)->stored);
        if (stored != STORED_NO ||
            flight_load(&shm, ref.index).incarnation != ref.incarnation)
            return (enum flight_stored)stored;
        pause_ms(5);
    }
    return STORED_NO;
}

/* The first column of the first row, -1 for none. */
static long long sql(const char *query)
{
    sqlite3 *db;
    sqlite3_stmt *s;
    long long value = -1;

    ck_assert_int_eq(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    ck_assert_msg(sqlite3_prepare_v2(db, query, -1, &s, NULL) == SQLITE_OK, "%s",
                  sqlite3_errmsg(db));
    if (sqlite3_step(s) == SQLITE_ROW)
        value = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    sqlite3_close(db);
    return value;
}

/* --- flights
 * ---------------------------------------------------------------------------- */

/* Leads a flight of a new key. */
static struct join_result lead(enum flight_kind kind)
{
    struct join_request req = {.kind = kind,
                               .now_ns = clock_now_ns(),
                               .arrived_ns = clock_now_ns(),
                               .created_us = clock_wall_us(),
                               .result_ttl_ns = 60 * NS_PER_S};
    struct id turn = id_new();
    struct join_result out;

    asked++;
    memcpy(req.key, &asked, sizeof(asked));
    memcpy(req.turn_id, turn.b, sizeof(req.turn_id));
    ck_assert_int_eq(index_join(&shm, &req, &out), DAC_OK);
    ck_assert_int_eq(out.role, JOIN_LEADER);
    return out;
}

static void append(struct join_result *j, enum record_type type, const void *p, size_t n)
{
    ck_assert_int_eq(blocklog_append(&shm, &j->writer, type, p, (uint32_t)n), DAC_OK);
}

static void append_request(struct join_result *j)
{
    struct turn_request r;
    struct buf b = BUF_INIT(1u << 16);

    turn_request_init(&r);
    snprintf(r.org, sizeof(r.org), "acme");
    snprintf(r.provider, sizeof(r.provider), "p");
    snprintf(r.model, sizeof(r.model), "m");
    r.user_message_id = id_new();
    r.assistant_message_id = id_new();
    buf_puts(&r.content, "what?");
    ck_assert_int_eq(turn_request_write(&r, &b), DAC_OK);
    append(j, RECORD_REQUEST, b.data, b.len);
    buf_free(&b);
    turn_request_free(&r);
    ck_assert_int_eq(flight_advance(&shm, j->ref, FLIGHT_QUEUED), DAC_OK);
}

/* A turn of which `text` has come. */
static struct join_result streaming_turn(const char *text)
{
    struct join_result j = lead(FLIGHT_TURN);

    append_request(&j);
    ck_assert_int_eq(flight_advance(&shm, j.ref, FLIGHT_FETCHING), DAC_OK);
    atomic_store(&flight_at(&shm, j.ref.index)->first_token_ns, clock_now_ns());
    append(&j, RECORD_DELTA, text, strlen(text));
    ck_assert_int_eq(flight_advance(&shm, j.ref, FLIGHT_STREAMING), DAC_OK);
    return j;
}

static void append_end(struct join_result *j, enum turn_status status)
{
    struct record_end end = {.status = status};

    snprintf(end.finish_reason, sizeof(end.finish_reason), "stop");
    atomic_store(&flight_at(&shm, j->ref.index)->ended_ns, clock_now_ns());
    append(j, RECORD_END, &end, sizeof(end));
}

static void end(struct join_result *j, enum flight_state state, enum turn_status status)
{
    append_end(j, status);
    ck_assert_int_eq(flight_advance(&shm, j->ref, state), DAC_OK);
    wake_recorder(&shm, j->ref.index);
}

/* The worker dies and the master sweeps. */
static void lose_worker(void)
{
    slot_sweep(&shm, worker_slot);
    wake_kick(&shm);
    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, 0, &worker_slot), DAC_OK);
    shm.self = worker_slot;
}

/* --- tests
 * ------------------------------------------------------------------------------ */

START_TEST(each_way_of_ending_is_stored_as_itself)
{
    static const struct {
        enum flight_state state;
        enum turn_status status;
        const char *word;
        enum shm_counter counter;
    } cases[] = {{FLIGHT_DONE, TURN_COMPLETE, "complete", SHM_C_turns_complete},
                 {FLIGHT_CANCELLED, TURN_CANCELLED, "cancelled", SHM_C_turns_cancelled},
                 {FLIGHT_FAILED, TURN_INCOMPLETE, "incomplete", SHM_C_turns_incomplete},
                 {FLIGHT_FAILED, TURN_FAILED, "failed", SHM_C_turns_failed}};
    struct sample sample;
    char query[128];

    start_recorder(NULL);
    for (size_t i = 0; i < DAC_ARRAY_LEN(cases); i++) {
        struct join_result j = streaming_turn("because");

        end(&j, cases[i].state, cases[i].status);
        ck_assert_int_eq(await_stored(j.ref), STORED_SQLITE);
        snprintf(query, sizeof(query), "SELECT count(*) FROM turns WHERE status = '%s'",
                 cases[i].word);
        ck_assert_int_eq(sql(query), 1);
        ck_assert_int_eq(shm_counter_sum(&shm, cases[i].counter), 1);
        ck_assert_int_eq(sample_read(&shm, &sample, 1), 1);
        ck_assert_int_eq(sample.status, cases[i].status);
        ck_assert_int_eq(atomic_load(&flight_at(&shm, j.ref.index)->sample), i + 1);
    }
    ck_assert_int_eq(sql("SELECT count(*) FROM messages"), 8);
}
END_TEST

START_TEST(a_reader_is_woken_when_its_turn_is_stored)
{
    struct join_result j = streaming_turn("because");
    uint64_t count;

    start_recorder(NULL);
    end(&j, FLIGHT_DONE, TURN_COMPLETE);
    ck_assert_int_eq(await_stored(j.ref), STORED_SQLITE);
    pause_ms(20);
    ck_assert_int_eq(read(shm.eventfd[worker_slot], &count, sizeof(count)),
                     sizeof(count));
}
END_TEST

/* What an orphan is stored as: by what its log holds. */
START_TEST(an_orphan_ends_by_what_its_log_holds)
{
    struct join_result cut = streaming_turn("half an ans");
    struct join_result whole = streaming_turn("whole");
    struct join_result cancelled = streaming_turn("stopped");
    struct join_result queued = lead(FLIGHT_TURN);
    struct join_result empty = lead(FLIGHT_TURN);
    struct join_result thread = lead(FLIGHT_THREAD);

    append_end(&whole, TURN_COMPLETE);
    append_end(&cancelled, TURN_CANCELLED);
    append_request(&queued);
    start_recorder(NULL);
    lose_worker();
    ck_assert_int_eq(await_stored(cut.ref), STORED_SQLITE);
    ck_assert_int_eq(await_stored(whole.ref), STORED_SQLITE);
    ck_assert_int_eq(await_stored(cancelled.ref), STORED_SQLITE);
    ck_assert_int_eq(await_stored(queued.ref), STORED_SQLITE);
    ck_assert_int_eq(await_stored(empty.ref), STORED_FAILED);
    ck_assert_int_eq(await_stored(thread.ref), STORED_FAILED);
    ck_assert_int_eq(flight_load(&shm, whole.ref.index).state, FLIGHT_DONE);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns WHERE status = 'incomplete' AND "
                         "error_code = 'fetcher_died'"),
                     2);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns WHERE status = 'complete'"), 1);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns WHERE status = 'cancelled'"), 1);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns"), 4);
    ck_assert_int_eq(sql("SELECT count(*) FROM messages WHERE content = 'half an ans'"),
                     1);
}
END_TEST

START_TEST(an_orphan_with_a_damaged_log_ends_nevertheless)
{
    char text[3 * SHM_BLOCK_SIZE];
    struct join_result j;
    uint32_t first;

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    j = streaming_turn(text);
    first = atomic_load(&flight_at(&shm, j.ref.index)->first_block) - 1;
    atomic_store(&shm.blocks[first].next, 0);
    start_recorder(NULL);
    lose_worker();
    ck_assert_int_eq(await_stored(j.ref), STORED_FAILED);
    ck_assert_int_eq(flight_load(&shm, j.ref.index).state, FLIGHT_FAILED);
}
END_TEST

START_TEST(what_ended_while_there_was_no_recorder_is_stored_by_the_next)
{
    struct join_result j[8];

    for (size_t i = 0; i < DAC_ARRAY_LEN(j); i++) {
        j[i] = streaming_turn("because");
        end(&j[i], FLIGHT_DONE, TURN_COMPLETE);
    }
    start_recorder(NULL);
    for (size_t i = 0; i < DAC_ARRAY_LEN(j); i++)
        ck_assert_int_eq(await_stored(j[i].ref), STORED_SQLITE);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns"), 8);
}
END_TEST

START_TEST(final_numbers_reach_the_store_when_a_flight_leaves_memory)
{
    struct join_result j = streaming_turn("because");
    struct shm_flight *f = flight_at(&shm, j.ref.index);

    atomic_store(&f->followers, 3);
    start_recorder(NULL);
    end(&j, FLIGHT_DONE, TURN_COMPLETE);
    ck_assert_int_eq(await_stored(j.ref), STORED_SQLITE);
    ck_assert_int_eq(sql("SELECT followers FROM turns"), 3);
    atomic_fetch_add(&f->hits, 5);
    flight_drop_reader(&shm, j.ref.index);
    atomic_store(&f->result_ttl_ns, 1);
    for (int i = 0; i < 400 && sql("SELECT hits FROM turns") != 5; i++)
        pause_ms(5);
    ck_assert_int_eq(sql("SELECT hits FROM turns"), 5);
    ck_assert_int_eq(flight_load(&shm, j.ref.index).state, FLIGHT_FREE);
}
END_TEST

/* A full table of answers that could still serve: newcomers ask for room and get it. */
START_TEST(a_full_table_makes_room_for_newcomers)
{
    struct join_request req = {
        .kind = FLIGHT_TURN, .now_ns = clock_now_ns(), .result_ttl_ns = 3600 * NS_PER_S};
    struct join_result out;
    enum dac_err e = DAC_E_FULL;

    start_recorder(NULL);
    for (int i = 0; i < FLIGHTS * 3; i++) {
        struct id turn = id_new();

        asked++;
        memcpy(req.key, &asked, sizeof(asked));
        memcpy(req.turn_id, turn.b, sizeof(turn.b));
        for (int n = 0; n < 2000; n++) {
            e = index_join(&shm, &req, &out);
            if (e != DAC_E_FULL)
                break;
            pause_ms(1);
        }
        ck_assert_int_eq(e, DAC_OK);
        append_request(&out);
        ck_assert_int_eq(flight_advance(&shm, out.ref, FLIGHT_FETCHING), DAC_OK);
        end(&out, FLIGHT_DONE, TURN_COMPLETE);
        flight_drop_reader(&shm, out.ref.index);
    }
}
END_TEST

/* While a reader is there, nothing may free the flight, whatever the pressure. */
START_TEST(a_read_flight_is_never_freed)
{
    struct join_result held = streaming_turn("because");

    end(&held, FLIGHT_DONE, TURN_COMPLETE);
    atomic_store(&flight_at(&shm, held.ref.index)->result_ttl_ns, 1);
    start_recorder(NULL);
    ck_assert_int_eq(await_stored(held.ref), STORED_SQLITE);
    atomic_store(&shm.hdr->pressure, 1);
    wake_recorder(&shm, 0);
    pause_ms(600);
    ck_assert_int_eq(flight_load(&shm, held.ref.index).incarnation, held.ref.incarnation);
    ck_assert_int_eq(flight_load(&shm, held.ref.index).state, FLIGHT_DONE);
}
END_TEST

START_TEST(it_ends_last_and_stores_the_rest)
{
    struct join_result j = streaming_turn("because");
    int status;

    start_recorder(NULL);
    end(&j, FLIGHT_DONE, TURN_COMPLETE);
    ck_assert_int_eq(await_stored(j.ref), STORED_SQLITE);
    atomic_fetch_add(&flight_at(&shm, j.ref.index)->hits, 7);
    kill(recorder, SIGTERM);
    pause_ms(400);
    ck_assert_int_eq(waitpid(recorder, &status, WNOHANG),
                     0); /* a worker is still there */
    j = streaming_turn("late");
    end(&j, FLIGHT_DONE, TURN_COMPLETE);
    slot_sweep(&shm, worker_slot);
    wake_kick(&shm);
    status = reap_recorder();
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_OK);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns"), 2);
    ck_assert_int_eq(sql("SELECT sum(hits) FROM turns"), 7);
}
END_TEST

START_TEST(a_store_that_cannot_be_opened_is_fatal_at_the_start_only)
{
    static const int expected[] = {EXIT_START, EXIT_FATAL};
    struct child_context ctx = {.shm = &shm,
                                .config = &config,
                                .listeners = &listeners,
                                .privileges = &privileges,
                                .report_fd = reports[1]};

    config.sqlite = (char *)"/nowhere/at/all.db";
    for (int starting = 0; starting < 2; starting++) {
        ctx.starting = starting != 0;
        ck_assert_int_eq(recorder_run(&ctx), expected[starting]);
    }
}
END_TEST

#ifdef DAC_CRASHPOINTS
static uint64_t counted(enum shm_timing_kind kind)
{
    struct timing t = timing_sum(&shm, 0, kind);
    uint64_t n = 0;

    for (size_t i = 0; i < SHM_TIMING_BUCKETS; i++)
        n += t.buckets[i];
    return n;
}

static const char *const crashes[] = {"recorder_adopted",
                                      "recorder_end_written",
                                      "recorder_before_commit",
                                      "recorder_after_commit",
                                      "recorder_before_stored",
                                      "sample_written",
                                      "sample_marked",
                                      "sample_there",
                                      "sample_counted",
                                      "timing_noting",
                                      "timing_half",
                                      "timing_half:5"};

/* Killed at a point, followed by another one: each turn is stored once, as what it is,
 * and counted once in each histogram. */
START_TEST(its_death_costs_nothing)
{
    struct join_result done = streaming_turn("whole");
    struct join_result cut = streaming_turn("half");
    int status;

    end(&done, FLIGHT_DONE, TURN_COMPLETE);
    lose_worker();
    start_recorder(crashes[_i]);
    status = reap_recorder();
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
                  "%s was not reached", crashes[_i]);
    start_recorder(NULL);
    ck_assert_int_eq(await_stored(done.ref), STORED_SQLITE);
    ck_assert_int_eq(await_stored(cut.ref), STORED_SQLITE);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns"), 2);
    ck_assert_int_eq(sql("SELECT count(*) FROM messages"), 4);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns WHERE status = 'complete'"), 1);
    ck_assert_int_eq(sql("SELECT count(*) FROM turns WHERE status = 'incomplete'"), 1);
    ck_assert_uint_eq(atomic_load(&shm.hdr->sample_seq), 2);
    ck_assert_uint_eq(counted(TIMING_LATENCY), 2);
    ck_assert_uint_eq(counted(TIMING_QUEUE), 2);
    ck_assert_uint_eq(counted(TIMING_OWN), 2);
}
END_TEST
#endif

int main(void)
{
    Suite *s = suite_create("recorder");
    TCase *tc = tcase_create("recorder");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, each_way_of_ending_is_stored_as_itself);
    tcase_add_test(tc, a_reader_is_woken_when_its_turn_is_stored);
    tcase_add_test(tc, an_orphan_ends_by_what_its_log_holds);
    tcase_add_test(tc, an_orphan_with_a_damaged_log_ends_nevertheless);
    tcase_add_test(tc, what_ended_while_there_was_no_recorder_is_stored_by_the_next);
    tcase_add_test(tc, final_numbers_reach_the_store_when_a_flight_leaves_memory);
    tcase_add_test(tc, a_full_table_makes_room_for_newcomers);
    tcase_add_test(tc, a_read_flight_is_never_freed);
    tcase_add_test(tc, it_ends_last_and_stores_the_rest);
    tcase_add_test(tc, a_store_that_cannot_be_opened_is_fatal_at_the_start_only);
#ifdef DAC_CRASHPOINTS
    tcase_add_loop_test(tc, its_death_costs_nothing, 0, (int)DAC_ARRAY_LEN(crashes));
#endif
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
