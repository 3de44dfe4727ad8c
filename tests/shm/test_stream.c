/*
 * One process writes 10,000 records into a log, others read it from the start, from the
 * middle or at the end. They sleep until they are woken, by nothing but the eventfd, and
 * compare every byte. A deadline is a failure: the wake-up was lost.
 */
#include "tests/shm/actors.h"

#define READERS     4u
#define RECORDS     10000u
#define DEADLINE_MS 5000
#define BYTES_MAX   16384u

enum {
    READ_OK = 10,
    READ_LOST_WAKEUP,
    READ_WRONG_BYTES,
    READ_CORRUPT,
    READ_WRONG_NUMBER
};

/* Lengths that cross borders often and leave the log below its bound. */
static uint32_t length_of(uint32_t n)
{
    return n % 1000 == 999 ? 8000 : n * 7919 % 331;
}

static uint8_t byte_of(uint32_t n, uint32_t i)
{
    return (uint8_t)(n * 131 + i * 7 + i / 256);
}

static void setup(void)
{
    struct shm_options opt = fixture_options(fixture_name("stream"), 64);
    char why[256];
    bool replaced;

    opt.size = UINT64_C(16) << 20;
    opt.flight_max_bytes = UINT64_C(8) << 20;
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_OK);
    ck_assert_int_eq(shm_unlink(shm_name), 0);
}

static void teardown(void)
{
    fixture_close();
}

static void check_one(const struct blocklog_cursor *c, const struct blocklog_record *r,
                      uint32_t number)
{
    static uint8_t scratch[BYTES_MAX];

    if (r->len != length_of(number))
        _exit(READ_WRONG_NUMBER);
    const uint8_t *p = blocklog_payload(&shm, c, r, scratch);
    for (uint32_t i = 0; i < r->len; i++)
        if (p[i] != byte_of(number, i))
            _exit(READ_WRONG_BYTES);
}

/* Reads what there is; true at END. */
static bool read_on(struct blocklog_cursor *c, uint32_t *number)
{
    struct blocklog_record r;
    enum dac_err e;

    while ((e = blocklog_peek(&shm, c, &r)) == DAC_OK) {
        if (r.type == RECORD_END) {
            blocklog_next(&shm, c, &r);
            return true;
        }
        check_one(c, &r, (*number)++);
        blocklog_next(&shm, c, &r);
    }
    if (e != DAC_E_AGAIN)
        _exit(READ_CORRUPT);
    return false;
}

/* `begin_at`: joins when the log is that long. */
static void reader(const struct join_request *req, struct flight_ref ref,
                   uint64_t begin_at)
{
    struct join_result r;
    struct blocklog_cursor c;
    uint32_t number = 0;

    while (atomic_load(&flight_at(&shm, ref.index)->tail) < begin_at)
        usleep(50);
    must(index_join(&shm, req, &r), "could not join", ref.index);
    if (r.role == JOIN_LEADER || r.ref.index != ref.index)
        actor_bad("joined another flight", r.ref.index);
    blocklog_rewind(&c, r.ref);
    while (!read_on(&c, &number))
        if (!actor_sleep(DEADLINE_MS))
            _exit(READ_LOST_WAKEUP);
    if (number != RECORDS || blocklog_unread(&shm, &c) != 0)
        _exit(READ_WRONG_NUMBER);
    flight_drop_reader(&shm, ref.index);
    _exit(READ_OK);
}

/* Now without a pause, now slow enough that every reader goes to sleep in between. */
static void write_all(struct join_result *lead)
{
    static uint8_t bytes[BYTES_MAX];
    unsigned seed = 1;

    for (uint32_t n = 0; n < RECORDS; n++) {
        uint32_t len = length_of(n);
        for (uint32_t i = 0; i < len; i++)
            bytes[i] = byte_of(n, i);
        ck_assert_int_eq(blocklog_append(&shm, &lead->writer, RECORD_DELTA, bytes, len),
                         DAC_OK);
        wake_readers(&shm, lead->ref.index);
        if (n / 500 % 2 == 1 && roll(&seed, 4) == 0)
            usleep(roll(&seed, 200));
    }
}

START_TEST(every_reader_gets_every_byte)
{
    static const uint64_t joins_at[READERS] = {0, 0, 700000, 1600000};
    struct join_request req = question(1);
    struct join_result lead;
    uint32_t slots[READERS];
    pid_t pids[READERS];
    int status;

    shm.self = new_worker();
    ck_assert_int_eq(index_join(&shm, &req, &lead), DAC_OK);
    ck_assert_int_eq(flight_advance(&shm, lead.ref, FLIGHT_QUEUED), DAC_OK);
    ck_assert_int_eq(flight_advance(&shm, lead.ref, FLIGHT_FETCHING), DAC_OK);
    for (uint32_t i = 0; i < READERS; i++) {
        slots[i] = new_worker();
        pids[i] = fork_actor(slots[i]);
        if (pids[i] == 0)
            reader(&req, lead.ref, joins_at[i]);
    }
    write_all(&lead);
    ck_assert_uint_gt(lead.writer.offset, joins_at[READERS - 1]);
    end_flight(&lead.ref, &lead.writer, FLIGHT_DONE, clock_now_ns());
    wake_readers(&shm, lead.ref.index);
    for (uint32_t i = 0; i < READERS; i++) {
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == READ_OK,
                      "reader %u ended with %d", i, WEXITSTATUS(status));
        bury_actor(slots[i]);
    }
    assert_all_valid();
    slot_sweep(&shm, shm.self);
    assert_nothing_leaked();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("streaming");
    TCase *t = tcase_create("stream");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 30);
    tcase_add_test(t, every_reader_gets_every_byte);
    suite_add_tcase(s, t);
    return run_suite(s);
}
