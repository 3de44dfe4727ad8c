/*
 * The flight's word: packing, every pair of states, claiming, advancing, adopting,
 * releasing, and the hints around it.
 */
#include "tests/shm/segment_fixture.h"

static uint32_t me;
static uint32_t other;

static void setup(void)
{
    fixture_open(64);
    me = new_worker();
    other = new_worker();
    shm.self = me;
}

static void teardown(void)
{
    fixture_close();
}

/* --- the word ----------------------------------------------------------------------- */

static const struct flight_word words[] = {
    {FLIGHT_FREE, SHM_NO_SLOT, 0, 0},
    {FLIGHT_CLAIMED, 0, 0, 1},
    {FLIGHT_QUEUED, 63, 1, UINT32_MAX},
    {FLIGHT_FETCHING, 7, UINT16_MAX, 0x80000000u},
    {FLIGHT_STREAMING, 1, 0x8000, 0x7fffffffu},
    {FLIGHT_ORPHANED, SHM_NO_SLOT, 0x00ff, 0x00ff00ffu},
    {FLIGHT_CANCELLED, SHM_NO_SLOT, UINT16_MAX, UINT32_MAX},
};

START_TEST(word_survives_packing)
{
    struct flight_word w = words[_i];
    struct flight_word back = flight_unpack(flight_pack(w));

    ck_assert_int_eq(back.state, w.state);
    ck_assert_uint_eq(back.owner, w.owner);
    ck_assert_uint_eq(back.generation, w.generation);
    ck_assert_uint_eq(back.incarnation, w.incarnation);
}
END_TEST

START_TEST(words_differ_packed)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(words); i++)
        for (size_t j = 0; j < i; j++)
            ck_assert_uint_ne(flight_pack(words[i]), flight_pack(words[j]));
}
END_TEST

/* --- every pair of states ----------------------------------------------------------- */

/* One row per state, one column per state: free claimed queued fetching streaming
 * orphaned done failed cancelled. */
static const char *const moves[FLIGHT_STATE_COUNT] = {
    [FLIGHT_FREE] = ".x.......",      [FLIGHT_CLAIMED] = "x.x..xxxx",
    [FLIGHT_QUEUED] = "...x.x.xx",    [FLIGHT_FETCHING] = "..x.xxxxx",
    [FLIGHT_STREAMING] = ".....xxxx", [FLIGHT_ORPHANED] = ".x.x.....",
    [FLIGHT_DONE] = "x........",      [FLIGHT_FAILED] = "x........",
    [FLIGHT_CANCELLED] = "x........",
};

START_TEST(only_listed_moves_are_allowed)
{
    enum flight_state from = (enum flight_state)_i;

    for (int to = 0; to < FLIGHT_STATE_COUNT; to++)
        ck_assert_msg(flight_may_move(from, (enum flight_state)to) ==
                          (moves[from][to] == 'x'),
                      "%s -> %s", flight_state_name(from),
                      flight_state_name((enum flight_state)to));
    ck_assert(!flight_may_move(from, FLIGHT_STATE_COUNT));
    ck_assert(!flight_may_move(FLIGHT_STATE_COUNT, from));
}
END_TEST

/* Puts a claimed flight into a state by force. */
static void force(struct flight_ref ref, enum flight_state state, uint32_t owner)
{
    struct flight_word w = {
        .state = state, .owner = owner, .incarnation = ref.incarnation};

    atomic_store(&flight_at(&shm, ref.index)->word, flight_pack(w));
}

static bool owned_state(enum flight_state s)
{
    return s >= FLIGHT_CLAIMED && s <= FLIGHT_STREAMING;
}

/* Allowed moves of an owner succeed and give up ownership at the end; the others end the
 * process (see forbidden_move_ends_the_process). */
START_TEST(owner_advances_along_the_table)
{
    struct flight_ref ref;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    for (int from = FLIGHT_CLAIMED; from <= FLIGHT_STREAMING; from++) {
        for (int to = FLIGHT_QUEUED; to < FLIGHT_STATE_COUNT; to++) {
            if (moves[from][to] != 'x' || to == FLIGHT_ORPHANED)
                continue;
            force(ref, (enum flight_state)from, me);
            ck_assert_int_eq(flight_advance(&shm, ref, (enum flight_state)to), DAC_OK);
            struct flight_word w = flight_load(&shm, ref.index);
            ck_assert_int_eq(w.state, to);
            ck_assert_uint_eq(
                w.owner, flight_state_ended((enum flight_state)to) ? SHM_NO_SLOT : me);
            ck_assert_uint_eq(w.incarnation, ref.incarnation);
        }
    }
}
END_TEST

START_TEST(forbidden_move_ends_the_process)
{
    struct flight_ref ref;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    force(ref, FLIGHT_STREAMING, me);
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stderr)); /* the assertion's line */
    enum dac_err e = flight_advance(&shm, ref, FLIGHT_QUEUED);
    (void)e;
}
END_TEST

START_TEST(only_the_owner_of_this_use_advances)
{
    struct flight_ref ref;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    for (int s = FLIGHT_FREE; s < FLIGHT_STATE_COUNT; s++) {
        bool owned = owned_state((enum flight_state)s);
        force(ref, (enum flight_state)s, owned ? other : SHM_NO_SLOT);
        ck_assert_int_eq(flight_advance(&shm, ref, FLIGHT_FAILED), DAC_E_STATE);
    }
    force(ref, FLIGHT_QUEUED, me);
    ref.incarnation++;
    ck_assert_int_eq(flight_advance(&shm, ref, FLIGHT_FETCHING), DAC_E_STATE);
}
END_TEST

START_TEST(names_cover_every_value)
{
    static const char *const states[] = {"free",     "claimed",   "queued",
                                         "fetching", "streaming", "orphaned",
                                         "done",     "failed",    "cancelled"};

    for (int s = 0; s < FLIGHT_STATE_COUNT; s++) {
        ck_assert_str_eq(flight_state_name((enum flight_state)s), states[s]);
        ck_assert_int_eq(flight_state_ended((enum flight_state)s), s >= FLIGHT_DONE);
        ck_assert_int_eq(flight_state_running((enum flight_state)s),
                         s >= FLIGHT_CLAIMED && s <= FLIGHT_ORPHANED);
    }
    ck_assert_str_eq(flight_state_name(FLIGHT_STATE_COUNT), "invalid");
    ck_assert_str_eq(flight_stored_name(STORED_FAILED), "failed");
    ck_assert_str_eq(flight_stored_name((enum flight_stored)99), "invalid");
    ck_assert_str_eq(turn_status_name(TURN_INCOMPLETE), "incomplete");
    ck_assert_str_eq(turn_status_name((enum turn_status)99), "invalid");
    ck_assert_int_eq(flight_state_for(TURN_COMPLETE), FLIGHT_DONE);
    ck_assert_int_eq(flight_state_for(TURN_CANCELLED), FLIGHT_CANCELLED);
    ck_assert_int_eq(flight_state_for(TURN_INCOMPLETE), FLIGHT_FAILED);
    ck_assert_int_eq(flight_state_for(TURN_FAILED), FLIGHT_FAILED);
}
END_TEST

/* --- claim, adopt, release ---------------------------------------------------------- */

START_TEST(claims_take_every_flight_once)
{
    struct flight_ref ref;
    bool seen[64] = {false};

    for (uint32_t i = 0; i < 64; i++) {
        ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
        ck_assert(!seen[ref.index]);
        seen[ref.index] = true;
        ck_assert_uint_eq(flight_load(&shm, ref.index).owner, me);
    }
    ck_assert_uint_eq(atomic_load(&shm.hdr->flights_used), 64);
    ck_assert_uint_eq(atomic_load(&shm.hdr->pressure), 0);
    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_E_FULL);
    ck_assert_uint_eq(atomic_load(&shm.hdr->pressure), 1);
}
END_TEST

START_TEST(new_use_inherits_nothing)
{
    struct flight_ref ref, again;
    struct shm_flight *f;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    f = flight_at(&shm, ref.index);
    shm_u64 *const longs[] = {&f->tail,           &f->queued_ns, &f->fetch_ns,
                              &f->first_token_ns, &f->ended_ns,  &f->ticket,
                              &f->followers,      &f->hits,      &f->sample,
                              &f->start,          &f->lost_ns};
    shm_u32 *const ints[] = {&f->stored, &f->requests, &f->first_block, &f->next};
    for (size_t i = 0; i < DAC_ARRAY_LEN(longs); i++)
        atomic_store(longs[i], 77);
    for (size_t i = 0; i < DAC_ARRAY_LEN(ints); i++)
        atomic_store(ints[i], 77);
    flight_unclaim(&shm, ref);
    ck_assert_int_eq(flight_load(&shm, ref.index).state, FLIGHT_FREE);
    atomic_store(&shm.hdr->flight_hand, ref.index);
    ck_assert_int_eq(flight_claim(&shm, &again), DAC_OK);
    ck_assert_uint_eq(again.index, ref.index);
    ck_assert_uint_eq(again.incarnation, ref.incarnation + 1);
    for (size_t i = 0; i < DAC_ARRAY_LEN(longs); i++)
        ck_assert_uint_eq(atomic_load(longs[i]), 0);
    for (size_t i = 0; i < DAC_ARRAY_LEN(ints); i++)
        ck_assert_uint_eq(atomic_load(ints[i]), 0);
    ck_assert_uint_eq(atomic_load(&f->block_count), 0);
}
END_TEST

START_TEST(hand_wraps_at_any_value)
{
    static const uint32_t hands[] = {0, 63, 64, 65, UINT32_MAX - 1, UINT32_MAX};
    struct flight_ref ref;

    for (size_t i = 0; i < DAC_ARRAY_LEN(hands); i++) {
        atomic_store(&shm.hdr->flight_hand, hands[i]);
        ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
        ck_assert_uint_eq(ref.index, (hands[i] + (i == 2)) % 64);
        if (i != 0)
            flight_unclaim(&shm, ref);
    }
}
END_TEST

START_TEST(one_adopter_wins)
{
    struct flight_ref ref;
    struct flight_word w;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    ck_assert_int_eq(flight_adopt(&shm, ref, FLIGHT_FETCHING), DAC_E_STATE);
    force(ref, FLIGHT_ORPHANED, SHM_NO_SLOT);
    struct flight_ref wrong = {.index = ref.index, .incarnation = ref.incarnation + 1};
    ck_assert_int_eq(flight_adopt(&shm, wrong, FLIGHT_FETCHING), DAC_E_STATE);
    shm.self = other;
    ck_assert_int_eq(flight_adopt(&shm, ref, FLIGHT_CLAIMED), DAC_OK);
    shm.self = me;
    ck_assert_int_eq(flight_adopt(&shm, ref, FLIGHT_CLAIMED), DAC_E_STATE);
    w = flight_load(&shm, ref.index);
    ck_assert_int_eq(w.state, FLIGHT_CLAIMED);
    ck_assert_uint_eq(w.owner, other);
    ck_assert_uint_eq(w.generation, 1);
    ck_assert_uint_eq(w.incarnation, ref.incarnation);
}
END_TEST

/* The recorder ends an orphan as soon as each of its readers has said that it cannot. */
START_TEST(readers_decline_an_orphan)
{
    struct flight_ref ref;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    ck_assert(flight_all_declined(&shm, ref.index)); /* nobody reads it */
    atomic_store(&flight_at(&shm, ref.index)->readers, UINT64_C(1) << me | UINT64_C(1)
                                                                               << other);
    ck_assert(!flight_all_declined(&shm, ref.index));
    ck_assert(!flight_decline(&shm, ref.index, false));
    ck_assert(flight_decline(&shm, ref.index, true));
    ck_assert(!flight_decline(&shm, ref.index, true)); /* no news */
    ck_assert(!flight_all_declined(&shm, ref.index));
    shm.self = other;
    ck_assert(flight_decline(&shm, ref.index, true));
    ck_assert(flight_all_declined(&shm, ref.index));
    ck_assert(flight_decline(&shm, ref.index, false)); /* a newcomer can */
    ck_assert(!flight_all_declined(&shm, ref.index));
    ck_assert(flight_decline(&shm, ref.index, true));
    shm.self = me;

    /* A swept slot's word is nobody's, and neither is it its successor's in the slot. */
    slot_sweep(&shm, other);
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, ref.index)->declined), UINT64_C(1)
                                                                              << me);
    atomic_store(&flight_at(&shm, ref.index)->readers, 0);
    flight_unclaim(&shm, ref);
    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, ref.index)->declined), 0);
}
END_TEST

START_TEST(what_is_given_back_can_be_adopted_again)
{
    struct flight_ref ref;
    struct flight_word w;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    force(ref, FLIGHT_ORPHANED, SHM_NO_SLOT);
    ck_assert_int_eq(flight_adopt(&shm, ref, FLIGHT_CLAIMED), DAC_OK);
    flight_give_back(&shm, ref);
    w = flight_load(&shm, ref.index);
    ck_assert_int_eq(w.state, FLIGHT_ORPHANED);
    ck_assert_uint_eq(w.owner, SHM_NO_SLOT);
    ck_assert_uint_eq(w.generation, 1);
    ck_assert_uint_ne(atomic_load(&flight_at(&shm, ref.index)->lost_ns), 0);
    shm.self = other;
    ck_assert_int_eq(flight_adopt(&shm, ref, FLIGHT_FETCHING), DAC_OK);
    ck_assert_uint_eq(flight_load(&shm, ref.index).generation, 2);
}
END_TEST

START_TEST(release_needs_the_word_last_seen)
{
    struct flight_ref ref;
    struct flight_word seen;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    force(ref, FLIGHT_DONE, SHM_NO_SLOT);
    seen = flight_load(&shm, ref.index);
    seen.generation++;
    ck_assert_int_eq(flight_release(&shm, ref.index, seen), DAC_E_STATE);
    seen.generation--;
    ck_assert_int_eq(flight_release(&shm, ref.index, seen), DAC_OK);
    ck_assert_int_eq(flight_release(&shm, ref.index, seen), DAC_E_STATE);
    ck_assert_uint_eq(atomic_load(&shm.hdr->flights_used), 0);
}
END_TEST

START_TEST(incarnation_wraps)
{
    struct flight_ref ref;

    for (uint32_t i = 0; i < 64; i++)
        force((struct flight_ref){.index = i, .incarnation = UINT32_MAX}, FLIGHT_FREE,
              SHM_NO_SLOT);
    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    ck_assert_uint_eq(ref.incarnation, UINT32_MAX);
    flight_unclaim(&shm, ref);
    ck_assert_uint_eq(flight_load(&shm, ref.index).incarnation, 0);
}
END_TEST

/* --- hints -------------------------------------------------------------------------- */

/* Hints drift when processes die between a step and its count. */
static const struct {
    uint32_t used;
} block_hints[] = {{0}, {UINT32_MAX}, {UINT32_MAX - 500}, {1u << 31}};

START_TEST(claims_go_on_though_the_hint_is_below_zero)
{
    struct flight_ref ref;

    atomic_store(&shm.hdr->blocks_used, block_hints[_i].used);
    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    ck_assert_uint_le(blocks_free_hint(&shm), shm.hdr->block_count);
}
END_TEST

START_TEST(newcomers_are_refused_when_few_blocks_are_left)
{
    uint32_t few = shm.hdr->block_count / 16;
    struct flight_ref ref;

    atomic_store(&shm.hdr->blocks_used, shm.hdr->block_count - few);
    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    atomic_store(&shm.hdr->blocks_used, shm.hdr->block_count - few + 1);
    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_E_FULL);
    ck_assert_uint_eq(atomic_load(&shm.hdr->pressure), 1);
    atomic_store(&shm.hdr->blocks_used, shm.hdr->block_count + 1);
    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_E_FULL);
}
END_TEST

/* A claimer may die before it cleared what the flight's last use left behind. */
START_TEST(blocks_are_subtracted_once)
{
    struct flight_ref ref;
    struct blocklog_writer w;
    struct flight_word claimed;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    ck_assert_int_eq(blocklog_open(&shm, ref, &w), DAC_OK);
    ck_assert_uint_eq(atomic_load(&shm.hdr->blocks_used), 1);
    flight_unclaim(&shm, ref);
    ck_assert_uint_eq(atomic_load(&shm.hdr->blocks_used), 0);
    /* The next claimer's first step only. */
    claimed = flight_load(&shm, ref.index);
    claimed.state = FLIGHT_CLAIMED;
    claimed.owner = other;
    atomic_store(&flight_at(&shm, ref.index)->word, flight_pack(claimed));
    slot_sweep(&shm, other);
    ck_assert_int_eq(flight_load(&shm, ref.index).state, FLIGHT_FREE);
    ck_assert_uint_eq(atomic_load(&shm.hdr->blocks_used), 0);
}
END_TEST

START_TEST(reader_bits_and_requests)
{
    struct flight_ref ref;

    ck_assert_int_eq(flight_claim(&shm, &ref), DAC_OK);
    atomic_store(&flight_at(&shm, ref.index)->readers, UINT64_C(1) << me | UINT64_C(1)
                                                                               << other);
    ck_assert(!flight_drop_reader(&shm, ref.index)); /* another one is left */
    ck_assert(!flight_drop_reader(&shm, ref.index)); /* it was none any more */
    shm.self = other;
    ck_assert(flight_drop_reader(&shm, ref.index));
    ck_assert(!flight_drop_reader(&shm, ref.index));
    ck_assert_uint_eq(flight_readers(&shm, ref.index), 0);

    ck_assert(flight_ask_cancel(&shm, ref.index));
    ck_assert(!flight_ask_cancel(&shm, ref.index));

    atomic_store(&flight_at(&shm, ref.index)->abandon_grace_ns, 50);
    flight_raise_grace(&shm, ref.index, 40);
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, ref.index)->abandon_grace_ns), 50);
    flight_raise_grace(&shm, ref.index, 60);
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, ref.index)->abandon_grace_ns), 60);
}
END_TEST

/* --- flight_valid ------------------------------------------------------------------- */

static const struct {
    enum flight_state state;
    bool owned;
    uint32_t bucket;
    uint64_t readers;
    uint64_t ended_ns;
    bool live, quiet; /* what flight_valid() says */
} cases[] = {
    {FLIGHT_FREE, false, 0, 0, 0, true, true},
    {FLIGHT_FREE, true, 0, 0, 0, false, false},
    {FLIGHT_FREE, false, 1, 0, 0, true, false},
    {FLIGHT_FREE, false, 0, 4, 0, true, false},
    {FLIGHT_CLAIMED, true, 0, 0, 0, true, true},
    {FLIGHT_CLAIMED, true, 1, 1, 0, true, true},
    {FLIGHT_CLAIMED, false, 0, 0, 0, false, false},
    {FLIGHT_QUEUED, true, 1, 1, 0, true, true},
    {FLIGHT_QUEUED, true, 0, 1, 0, true, false},
    {FLIGHT_STREAMING, true, 65, 1, 0, true, false},
    {FLIGHT_STREAMING, false, 1, 1, 0, false, false},
    {FLIGHT_ORPHANED, false, 1, 1, 0, true, true},
    {FLIGHT_ORPHANED, true, 1, 1, 0, false, false},
    {FLIGHT_ORPHANED, false, 0, 1, 0, true, false},
    {FLIGHT_DONE, false, 1, 0, 9, true, true},
    {FLIGHT_DONE, false, 0, 0, 9, true, true},
    {FLIGHT_DONE, false, 1, 0, 0, true, false},
    {FLIGHT_DONE, true, 1, 0, 9, false, false},
    {FLIGHT_STATE_COUNT, false, 0, 0, 0, false, false},
};

START_TEST(valid_says_what_is_wrong)
{
    struct shm_flight *f = flight_at(&shm, 5);
    char why[160] = "";

    force((struct flight_ref){.index = 5}, cases[_i].state,
          cases[_i].owned ? me : SHM_NO_SLOT);
    atomic_store(&f->bucket, cases[_i].bucket);
    atomic_store(&f->readers, cases[_i].readers);
    atomic_store(&f->ended_ns, cases[_i].ended_ns);
    ck_assert_int_eq(flight_valid(&shm, 5, false, why, sizeof(why)), cases[_i].live);
    ck_assert_int_eq(flight_valid(&shm, 5, true, why, sizeof(why)), cases[_i].quiet);
    ck_assert_int_eq(why[0] == '\0', cases[_i].quiet);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("flight word");
    TCase *t = tcase_create("word");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, word_survives_packing, 0, DAC_ARRAY_LEN(words));
    tcase_add_test(t, words_differ_packed);
    tcase_add_loop_test(t, only_listed_moves_are_allowed, 0, FLIGHT_STATE_COUNT);
    tcase_add_test(t, owner_advances_along_the_table);
    tcase_add_test_raise_signal(t, forbidden_move_ends_the_process, SIGABRT);
    tcase_add_test(t, only_the_owner_of_this_use_advances);
    tcase_add_test(t, names_cover_every_value);
    tcase_add_test(t, claims_take_every_flight_once);
    tcase_add_test(t, new_use_inherits_nothing);
    tcase_add_test(t, hand_wraps_at_any_value);
    tcase_add_test(t, one_adopter_wins);
    tcase_add_test(t, readers_decline_an_orphan);
    tcase_add_test(t, what_is_given_back_can_be_adopted_again);
    tcase_add_test(t, release_needs_the_word_last_seen);
    tcase_add_test(t, incarnation_wraps);
    tcase_add_loop_test(t, claims_go_on_though_the_hint_is_below_zero, 0,
                        DAC_ARRAY_LEN(block_hints));
    tcase_add_test(t, newcomers_are_refused_when_few_blocks_are_left);
    tcase_add_test(t, blocks_are_subtracted_once);
    tcase_add_test(t, reader_bits_and_requests);
    tcase_add_loop_test(t, valid_says_what_is_wrong, 0, DAC_ARRAY_LEN(cases));
    suite_add_tcase(s, t);
    return run_suite(s);
}
