/*
 * What a look at a whole segment finds: nothing on a sound one, whatever its processes
 * were at when they died; each kind of damage in words; and no content makes it crash.
 */
#include <errno.h>
#include <signal.h>

#include "shm/verify.h"
#include "tests/shm/segment_fixture.h"

#define SEEN_MAX 256

static struct verify_finding seen[SEEN_MAX];
static size_t seen_count;

static void see(void *ctx, const struct verify_finding *f)
{
    (void)ctx;
    ck_assert_uint_lt(strlen(f->words), sizeof(f->words) - 1);
    if (!f->note && seen_count < SEEN_MAX)
        seen[seen_count++] = *f;
}

static void look(bool live, uint64_t now_ns)
{
    struct verify_view view = {
        .shm = &shm, .live = live, .master = true, .now_ns = now_ns};

    seen_count = 0;
    verify_pass(&view, see, NULL);
}

static void assert_clean(bool live)
{
    look(live, clock_now_ns());
    ck_assert_msg(seen_count == 0, "%s %u: %s", seen[0].object, seen[0].index,
                  seen[0].words);
}

/* A flight of a new question, led as far as `state`. */
static uint32_t flight_in(uint32_t n, enum flight_state state)
{
    static const enum flight_state way[] = {FLIGHT_QUEUED, FLIGHT_FETCHING,
                                            FLIGHT_STREAMING};
    struct join_request req = question(n);
    struct join_result r;

    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_int_eq(r.role, JOIN_LEADER);
    if (state == FLIGHT_CLAIMED)
        return r.ref.index;
    ck_assert_int_eq(blocklog_append(&shm, &r.writer, RECORD_REQUEST, "{}", 2), DAC_OK);
    for (size_t i = 0; i < DAC_ARRAY_LEN(way); i++) {
        ck_assert_int_eq(flight_advance(&shm, r.ref, way[i]), DAC_OK);
        if (state == way[i])
            return r.ref.index;
    }
    ck_assert_int_eq(blocklog_append(&shm, &r.writer, RECORD_DELTA, "text", 4), DAC_OK);
    end_flight(&r.ref, &r.writer, state, clock_now_ns());
    return r.ref.index;
}

static uint32_t worker, claimed, streaming, done, alias;

static struct flight_ref use_of(uint32_t flight)
{
    return (struct flight_ref){.index = flight,
                               .incarnation = flight_load(&shm, flight).incarnation};
}

static uint32_t name(uint32_t n, uint32_t flight)
{
    struct alias_key key = name_of(0, n);
    struct alias_found found;
    uint32_t at;

    ck_assert_int_eq(alias_claim(&shm, &key, body_of(n), 1, NULL, &at, &found), DAC_OK);
    alias_bind(&shm, at, use_of(flight));
    return at;
}

/* Two workers, one of them the owner of a flight in each of several states. */
static void setup(void)
{
    uint64_t wait;
    uint32_t permit;

    fixture_open(64);
    (void)new_worker();
    worker = shm.self = new_worker();
    claimed = flight_in(1, FLIGHT_CLAIMED);
    streaming = flight_in(2, FLIGHT_STREAMING);
    done = flight_in(3, FLIGHT_DONE);
    ck_assert_int_eq(
        pacer_take(&shm, 0, use_of(streaming), clock_now_ns(), &permit, &wait), DAC_OK);
    name(1, streaming);
    alias = name(2, done);
    slot_recount(&shm);
}

static void teardown(void)
{
    fixture_close();
}

START_TEST(a_sound_segment_is_sound)
{
    assert_clean(true);
    assert_clean(false);
    assert_all_valid();
}
END_TEST

START_TEST(what_a_death_leaves_is_no_damage)
{
    struct verify_remains left;

    atomic_store(&shm.slots[worker].locking_bucket, 3);
    shm.self = SHM_NO_SLOT;
    left = verify_settle(&shm);
    ck_assert_uint_eq(left.processes, 2);
    ck_assert_uint_eq(left.flights, 2);
    ck_assert_uint_eq(left.permits, 1);
    ck_assert_uint_eq(left.locks, 0);
    assert_clean(false);
}
END_TEST

/* A child dies under a bucket's lock with the chain half changed. */
START_TEST(a_chain_whose_lock_was_held_is_mended)
{
    uint32_t bucket = atomic_load(&flight_at(&shm, done)->bucket) - 1;
    pid_t pid = fork();
    int status;

    ck_assert_int_ge(pid, 0);
    ck_assert_uint_eq(atomic_load(&alias_at(&shm, alias)->bucket), bucket + 1);
    if (pid == 0) {
        if (pthread_mutex_lock(&shm.buckets[bucket].lock) == 0)
            atomic_store(&shm.buckets[bucket].head, 0);
        atomic_store(&shm.buckets[bucket].aliases, 0);
        raise(SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    assert_clean(true); /* the next holder's to mend */
    look(false, 0);
    ck_assert_uint_eq(seen_count, 2); /* of flights, and of aliases */
    ck_assert_str_eq(seen[0].object, "bucket");
    ck_assert_str_eq(seen[1].object, "alias");
    ck_assert_uint_eq(verify_settle(&shm).locks, 1);
    assert_clean(false);
}
END_TEST

/* --- damage ----------------------------------------------------------------------------
 */

static void word_state(void)
{
    struct flight_word w = flight_load(&shm, done);

    w.state = (enum flight_state)77;
    atomic_store(&flight_at(&shm, done)->word, flight_pack(w));
}

static void word_owner(void)
{
    struct flight_word w = flight_load(&shm, streaming);

    w.owner = SHM_NO_SLOT;
    atomic_store(&flight_at(&shm, streaming)->word, flight_pack(w));
}

static void owner_without_process(void)
{
    struct flight_word w = flight_load(&shm, streaming);

    w.owner = 40;
    atomic_store(&flight_at(&shm, streaming)->word, flight_pack(w));
    ck_assert_uint_eq(pacer_sweep(&shm, worker), 1);
}

static void reader_without_process(void)
{
    atomic_fetch_or(&flight_at(&shm, done)->readers, UINT64_C(1) << 40);
}

static void free_flight_with_reader(void)
{
    atomic_store(&flight_at(&shm, 60)->readers, 1);
}

static void stored_unknown(void)
{
    atomic_store(&flight_at(&shm, done)->stored, 9);
}

static void stored_early(void)
{
    atomic_store(&flight_at(&shm, streaming)->stored, STORED_SQLITE);
}

static void not_indexed(void)
{
    atomic_store(&shm.buckets[atomic_load(&flight_at(&shm, streaming)->bucket) - 1].head,
                 0);
}

static void circle(void)
{
    atomic_store(&flight_at(&shm, done)->next, done + 1);
}

static void other_key(void)
{
    flight_at(&shm, done)->key[0] ^= 1;
}

static void other_blocks(void)
{
    atomic_store(&shm.blocks[atomic_load(&flight_at(&shm, done)->first_block) - 1].owner,
                 UINT64_C(1) << 32 | 7);
}

static void long_log(void)
{
    atomic_store(&flight_at(&shm, done)->tail, UINT64_C(1) << 60);
}

static void broken_log(void)
{
    uint32_t block = atomic_load(&flight_at(&shm, done)->first_block) - 1;

    memset(shm.data + (size_t)block * SHM_BLOCK_SIZE, 0xff, 8);
}

static void log_start(void)
{
    atomic_store(&flight_at(&shm, done)->start, 4000);
}

static void foreign_block(void)
{
    atomic_store(&shm.blocks[99].owner, UINT64_C(5000) << 32);
}

static void foreign_permit(void)
{
    atomic_store(&shm.pacers[0].permits[7], UINT64_C(2) << 56 | UINT64_C(5000) << 32);
}

static void lost_permit(void)
{
    uint64_t word = (uint64_t)(worker + 1) << 56 | (uint64_t)done << 32;

    word |= flight_load(&shm, done).incarnation;
    atomic_store(&shm.pacers[0].permits[7], word);
}

static void slot_unknown(void)
{
    atomic_store(&shm.slots[9].state, 12);
}

static void slot_with_pid(void)
{
    atomic_store(&shm.slots[9].pid, 12);
}

static void recorder_elsewhere(void)
{
    atomic_store(&shm.hdr->recorder_slot, 33);
}

static void recorder_nowhere(void)
{
    atomic_store(&shm.hdr->recorder_slot, SHM_SLOTS);
}

static void worker_is_a_recorder(void)
{
    atomic_store(&shm.slots[worker].kind, SLOT_RECORDER);
    atomic_store(&shm.hdr->ordinal_slot[3], worker);
}

static void too_many_workers(void)
{
    atomic_store(&shm.hdr->worker_count, SHM_WORKERS_MAX + 1);
}

/* Whose holder died, and whose next one gave it up without a word. */
static void lock_lost(void)
{
    pthread_mutex_t *lock = &shm.buckets[50].lock;
    pid_t pid = fork();

    if (pid == 0) {
        if (pthread_mutex_lock(lock) == 0)
            raise(SIGKILL);
        _exit(1);
    }
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    ck_assert_int_eq(pthread_mutex_lock(lock), EOWNERDEAD);
    ck_assert_int_eq(pthread_mutex_unlock(lock), 0);
    ck_assert_int_eq(pthread_mutex_trylock(lock), ENOTRECOVERABLE);
}

static void sample_of_nobody(void)
{
    atomic_store(&shm.samples[5].seq, 900);
}

static uint32_t alias_bucket(void)
{
    return atomic_load(&alias_at(&shm, alias)->bucket) - 1;
}

static void alias_of_no_flight(void)
{
    atomic_store(&alias_at(&shm, alias)->word, UINT64_C(5000) << 32);
}

static void alias_of_no_slot(void)
{
    atomic_store(&alias_at(&shm, alias)->word, ALIAS_BEING_BOUND | UINT64_C(77) << 32);
}

static void alias_in_no_bucket(void)
{
    atomic_store(&alias_at(&shm, alias)->bucket, shm.hdr->bucket_count + 1);
}

static void alias_stored_unknown(void)
{
    atomic_store(&alias_at(&shm, alias)->stored, 7);
}

static void alias_not_listed(void)
{
    atomic_store(&flight_at(&shm, done)->aliases, 0);
}

static void alias_of_other_key(void)
{
    alias_at(&shm, alias)->key[0] ^= 1;
}

static void alias_free_in_a_chain(void)
{
    atomic_store(&alias_at(&shm, alias)->word, 0);
}

static void alias_not_chained(void)
{
    atomic_store(&shm.buckets[alias_bucket()].aliases, 0);
}

static void alias_chain_wild(void)
{
    atomic_store(&alias_at(&shm, alias)->next, 70000);
}

static void alias_chain_astray(void)
{
    atomic_store(&alias_at(&shm, alias)->next, 3000);
}

static void alias_chain_circle(void)
{
    atomic_store(&alias_at(&shm, alias)->next, alias + 1);
}

static void alias_listed_elsewhere(void)
{
    atomic_store(&alias_at(&shm, alias)->target, alias_use(use_of(streaming)));
}

static void alias_list_short(void)
{
    atomic_fetch_add(&flight_at(&shm, done)->aliases, UINT64_C(1) << 32);
}

static void alias_counted_twice(void)
{
    atomic_store(&flight_at(&shm, done)->aliases_stored, 1);
}

static void alias_unstored(void)
{
    atomic_store(&flight_at(&shm, done)->ended_ns, 1);
    atomic_store(&flight_at(&shm, done)->stored, STORED_SQLITE);
}

static void alias_hint(void)
{
    atomic_store(&shm.hdr->aliases_used, 60);
}

static void hint(void)
{
    atomic_store(&shm.hdr->flights_used, 60);
}

static void unstored(void)
{
    atomic_store(&flight_at(&shm, done)->ended_ns, 1);
}

static void orphan(void)
{
    struct flight_word w = flight_load(&shm, streaming);

    w.state = FLIGHT_ORPHANED;
    w.owner = SHM_NO_SLOT;
    atomic_store(&flight_at(&shm, streaming)->word, flight_pack(w));
    atomic_store(&flight_at(&shm, streaming)->lost_ns, 1);
    ck_assert_uint_eq(pacer_sweep(&shm, worker), 1);
}

static const struct {
    void (*damage)(void);
    const char *object;
    const char *words; /* a part of them */
    bool certain;
    bool live_only;
} cases[] = {
    {word_state, "flight", "its state 77 does not exist", true, false},
    {word_owner, "flight", "it is streaming but nobody owns it", true, false},
    {owner_without_process, "flight", "no process is in slot 40, its owner", false,
     false},
    {reader_without_process, "flight", "slot 40 reads it, but no process", false, false},
    {free_flight_with_reader, "flight", "it is free but has readers", false, false},
    {stored_unknown, "flight", "stored is 9, which does not exist", true, false},
    {stored_early, "flight", "it is streaming and yet stored (sqlite)", false, false},
    {not_indexed, "bucket", "says this bucket but is not in its chain", false, false},
    {circle, "bucket", "not from the newest to the oldest", false, false},
    {other_key, "flight", "its key belongs in", false, false},
    {other_blocks, "flight", "of its log belongs to somebody else", false, false},
    {long_log, "flight", "but only 1 blocks", false, false},
    {broken_log, "flight", "its log is broken at byte 0", false, false},
    {log_start, "flight", "readers begin behind its log's end", false, false},
    {foreign_block, "block", "flight 4999 has it, which does not exist", true, false},
    {foreign_permit, "provider", "permit 7 names slot 1 and flight 5000", true, false},
    {lost_permit, "provider", "permit 7 is held for flight", false, false},
    {slot_unknown, "slot", "its state 12 does not exist", false, false},
    {slot_with_pid, "slot", "it is free but names pid 12", false, false},
    {recorder_elsewhere, "header", "the recorder is said to be in slot 33", false, false},
    {recorder_nowhere, "header", "in slot 64, which does not exist", true, false},
    {worker_is_a_recorder, "header", "worker 3 is said to be in slot 1, where", false,
     false},
    {too_many_workers, "header", "29 workers are more than 28", true, false},
    {lock_lost, "bucket", "its lock can never be had again", true, false},
    {sample_of_nobody, "samples", "sample 5 has number 899", false, false},
    {alias_of_no_flight, "alias", "bound to flight 4999, which does not exist", true,
     false},
    {alias_of_no_slot, "alias", "slot 76 is binding it, which does not exist", true,
     false},
    {alias_in_no_bucket, "alias", "its bucket does not exist", true, false},
    {alias_stored_unknown, "alias", "stored is 7, which does not exist", true, false},
    {alias_not_listed, "alias", "whose list does not lead to it", false, false},
    {alias_of_other_key, "alias", "its key belongs in", false, false},
    {alias_free_in_a_chain, "alias", "it is free but in the chain of", false, false},
    {alias_not_chained, "alias", "but is not in its chain of aliases", false, false},
    {alias_chain_wild, "bucket", "it links to alias 69999, which does not", false, false},
    {alias_chain_astray, "bucket", "alias 2999 is in its chain but says", false, false},
    {alias_chain_circle, "bucket", "its chain of aliases is a circle", false, false},
    {alias_listed_elsewhere, "flight", "is on its list but belongs to another use", false,
     false},
    {alias_list_short, "flight", "does not have the 2 aliases that it counts", false,
     false},
    {alias_counted_twice, "flight", "1 of its aliases are said to be stored, 0 are",
     false, false},
    {alias_unstored, "flight", "0 of its 1 aliases are stored", false, true},
    {alias_hint, "header", "60 aliases are said to be in use, 2 are", false, true},
    {hint, "header", "60 flights are said to be in use, 3 are", false, true},
    {unstored, "flight", "it ended more than 30 s ago and is not stored", false, true},
    {orphan, "flight", "nobody took it over", false, true},
};

START_TEST(damage_is_named)
{
    for (int live = 1; live >= 0; live--) {
        bool found = false;

        if (!live && cases[_i].live_only)
            break;
        if (live)
            cases[_i].damage();
        look(live, clock_now_ns());
        for (size_t i = 0; i < seen_count; i++) {
            if (strcmp(seen[i].object, cases[_i].object) != 0 ||
                !strstr(seen[i].words, cases[_i].words))
                continue;
            found = true;
            ck_assert_int_eq(seen[i].certain, cases[_i].certain || !live);
        }
        ck_assert_msg(found, "case %d (%s): of %zu findings none is it, the first is %s",
                      _i, cases[_i].words, seen_count, seen_count ? seen[0].words : "");
    }
}
END_TEST

/* Words overwritten anywhere, but in the sizes that an attach checks. */
START_TEST(no_content_is_too_odd)
{
    uint64_t seed = 88172645463325252u;
    uint64_t from = sizeof(struct shm_header) / 8;

    for (int round = 0; round < 300; round++) {
        uint64_t words = shm.hdr->areas.data / 8 - from;

        for (int i = 0; i < 200; i++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            uint64_t at = from + (seed >> 8) % words;
            uint64_t value = i % 3 == 0   ? seed
                             : i % 3 == 1 ? seed % 80
                                          : (seed % 80) << 32 | seed % 3;

            /* Not into the locks: those are the C library's. */
            if (at * 8 < shm.hdr->areas.buckets || at * 8 >= shm.hdr->areas.flights)
                memcpy(shm.base + at * 8, &value, sizeof(value));
        }
        look(true, clock_now_ns());
        if (round % 10 == 9)
            verify_settle(&shm);
        look(false, clock_now_ns());
        ck_assert_uint_gt(seen_count, 0);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("verify");
    TCase *tc = tcase_create("verify");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_sound_segment_is_sound);
    tcase_add_test(tc, what_a_death_leaves_is_no_damage);
    tcase_add_test(tc, a_chain_whose_lock_was_held_is_mended);
    tcase_add_loop_test(tc, damage_is_named, 0, (int)DAC_ARRAY_LEN(cases));
    tcase_add_test(tc, no_content_is_too_odd);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
