/*
 * The block log: records of every size across block borders, a new owner at every
 * offset, bounds, the block pool, and what blocklog_valid() says of broken chains.
 */
#include "tests/shm/segment_fixture.h"

#define SIZES_MAX 5000u

static uint8_t bytes[SIZES_MAX + 1];
static uint8_t scratch[SIZES_MAX + 1];
static struct join_result lead;
static uint32_t me;
static uint32_t other;

static void setup(void)
{
    struct join_request req = question(1);

    fixture_open(64);
    me = new_worker();
    other = new_worker();
    shm.self = me;
    ck_assert_int_eq(index_join(&shm, &req, &lead), DAC_OK);
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 31 + i / 256);
}

static void teardown(void)
{
    fixture_close();
}

/* Bytes that belong to record number `n`: a window of `bytes` that moves. */
static const uint8_t *payload_of(uint32_t n, uint32_t len)
{
    return bytes + n % (sizeof(bytes) - len);
}

static void append(uint32_t n, uint32_t len)
{
    ck_assert_int_eq(
        blocklog_append(&shm, &lead.writer, RECORD_DELTA, payload_of(n, len), len),
        DAC_OK);
}

/* Reads one record at the cursor and compares all of it. */
static void expect(struct blocklog_cursor *c, uint32_t n, uint32_t len)
{
    struct blocklog_record r;

    ck_assert_int_eq(blocklog_peek(&shm, c, &r), DAC_OK);
    ck_assert_int_eq(r.type, RECORD_DELTA);
    ck_assert_uint_eq(r.len, len);
    ck_assert_int_eq(
        memcmp(blocklog_payload(&shm, c, &r, scratch), payload_of(n, len), len), 0);
    blocklog_next(&shm, c, &r);
}

static void expect_nothing(struct blocklog_cursor *c)
{
    struct blocklog_record r;

    ck_assert_int_eq(blocklog_peek(&shm, c, &r), DAC_E_AGAIN);
    ck_assert_uint_eq(blocklog_unread(&shm, c), 0);
}

/* --- sizes and borders -------------------------------------------------------------- */

/* Every size; a reader that follows and one that begins at the end see the same. */
START_TEST(every_size_comes_back)
{
    struct blocklog_cursor live, late;
    uint32_t first = (uint32_t)_i * 250;
    uint32_t last = first + 250 < SIZES_MAX ? first + 250 : SIZES_MAX;

    blocklog_rewind(&live, lead.ref);
    blocklog_rewind(&late, lead.ref);
    expect_nothing(&live);
    for (uint32_t len = first; len <= last; len++) {
        append(len, len);
        expect(&live, len, len);
        expect_nothing(&live);
    }
    for (uint32_t len = first; len <= last; len++)
        expect(&late, len, len);
    expect_nothing(&late);
    end_flight(&lead.ref, &lead.writer, FLIGHT_FAILED, clock_now_ns());
    assert_all_valid();
}
END_TEST

/* A record that begins at each distance from a block's end, header cut or payload cut. */
START_TEST(every_cut_at_a_border)
{
    struct blocklog_cursor c;
    uint32_t lens[] = {
        0, 1, 7, 8, 9, SHM_BLOCK_SIZE - 8, SHM_BLOCK_SIZE, 3 * SHM_BLOCK_SIZE};
    uint32_t len = lens[_i];

    blocklog_rewind(&c, lead.ref);
    for (uint32_t short_of_end = 0; short_of_end <= 24; short_of_end++) {
        /* Fill up so that the next record begins `short_of_end` bytes before a border. */
        uint64_t want = SHM_BLOCK_SIZE - short_of_end;
        uint64_t at = (lead.writer.offset + 8) % SHM_BLOCK_SIZE;
        uint32_t fill = (uint32_t)((want + SHM_BLOCK_SIZE - at) % SHM_BLOCK_SIZE);

        append(fill, fill);
        ck_assert_uint_eq((lead.writer.offset + short_of_end) % SHM_BLOCK_SIZE, 0);
        append(short_of_end, len > SIZES_MAX ? SIZES_MAX : len);
        expect(&c, fill, fill);
        expect(&c, short_of_end, len > SIZES_MAX ? SIZES_MAX : len);
    }
    expect_nothing(&c);
    char why[160];
    ck_assert_msg(blocklog_valid(&shm, lead.ref.index, why, sizeof(why)), "%s", why);
}
END_TEST

/* A reader may begin at any record. */
START_TEST(seek_begins_at_any_record)
{
    uint64_t at[60];
    uint32_t n = 0;

    for (; n < DAC_ARRAY_LEN(at); n++) {
        at[n] = lead.writer.offset;
        append(n, n * 97 % 1300);
    }
    while (n-- > 0) {
        struct blocklog_cursor c;
        blocklog_seek(&c, lead.ref, at[n]);
        ck_assert_uint_eq(blocklog_unread(&shm, &c), lead.writer.offset - at[n]);
        for (uint32_t i = n; i < DAC_ARRAY_LEN(at) && i < n + 3; i++)
            expect(&c, i, i * 97 % 1300);
    }
    struct blocklog_cursor c;
    blocklog_seek(&c, lead.ref, lead.writer.offset);
    expect_nothing(&c);
    blocklog_seek(&c, lead.ref, lead.writer.offset + 5000);
    expect_nothing(&c);
}
END_TEST

START_TEST(copy_takes_a_part)
{
    struct blocklog_cursor c;
    struct blocklog_record r;
    uint8_t out[16];

    append(3, 3000);
    append(4, 2);
    blocklog_rewind(&c, lead.ref);
    ck_assert_int_eq(blocklog_peek(&shm, &c, &r), DAC_OK);
    memset(out, 0xee, sizeof(out));
    blocklog_copy(&shm, &c, &r, out, 10);
    ck_assert_int_eq(memcmp(out, payload_of(3, 3000), 10), 0);
    ck_assert_uint_eq(out[10], 0xee);
    blocklog_next(&shm, &c, &r);
    ck_assert_int_eq(blocklog_peek(&shm, &c, &r), DAC_OK);
    memset(out, 0xee, sizeof(out));
    blocklog_copy(&shm, &c, &r, out, sizeof(out));
    ck_assert_int_eq(memcmp(out, payload_of(4, 2), 2), 0);
    ck_assert_uint_eq(out[2], 0xee);
}
END_TEST

/* --- a new owner -------------------------------------------------------------------- */

/* The word as the sweep leaves it, then as whoever takes over makes it. */
static void hand_over(uint32_t to)
{
    struct flight_word w = flight_load(&shm, lead.ref.index);

    w.state = FLIGHT_ORPHANED;
    w.owner = SHM_NO_SLOT;
    atomic_store(&flight_at(&shm, lead.ref.index)->word, flight_pack(w));
    shm.self = to;
    ck_assert_int_eq(flight_adopt(&shm, lead.ref, FLIGHT_FETCHING), DAC_OK);
    ck_assert_int_eq(blocklog_open(&shm, lead.ref, &lead.writer), DAC_OK);
}

/* A dead writer had written behind the tail, and linked blocks there. */
START_TEST(new_owner_goes_on_at_the_tail)
{
    struct blocklog_cursor c;
    uint16_t generations[64];
    uint32_t lens[64];
    uint32_t n = 0;

    for (uint32_t len = (uint32_t)_i; n < 40; len = len * 5 % 2311 + 3) {
        uint64_t tail = lead.writer.offset;
        append(n, 4000);
        append(n, 900);
        /* It died before it published these two. */
        atomic_store(&flight_at(&shm, lead.ref.index)->tail, tail);
        hand_over(n % 2 ? me : other);
        ck_assert_uint_eq(lead.writer.offset, tail);
        ck_assert_uint_eq(lead.writer.generation, n + 1);
        append(n, len);
        generations[n] = (uint16_t)(n + 1);
        lens[n++] = len;
    }
    blocklog_rewind(&c, lead.ref);
    for (uint32_t i = 0; i < n; i++) {
        struct blocklog_record r;
        ck_assert_int_eq(blocklog_peek(&shm, &c, &r), DAC_OK);
        ck_assert_uint_eq(r.generation, generations[i]);
        expect(&c, i, lens[i]);
    }
    expect_nothing(&c);
    /* What the dead had linked was used again, not left and taken anew. */
    ck_assert_uint_le(blocks_in_use(), lead.writer.offset / SHM_BLOCK_SIZE + 5);
}
END_TEST

/* At each offset over two blocks, byte by byte. */
START_TEST(new_owner_at_every_offset)
{
    struct blocklog_cursor c;
    uint32_t n = 0;

    blocklog_rewind(&c, lead.ref);
    while (lead.writer.offset < 2 * SHM_BLOCK_SIZE + 64) {
        append(n, n % 3 == 0 ? 0 : 1);
        n++;
        hand_over(n % 2 ? other : me);
    }
    append(n, 0);
    for (uint32_t i = 0; i <= n; i++)
        expect(&c, i, i < n && i % 3 != 0);
    expect_nothing(&c);
    char why[160];
    ck_assert_msg(blocklog_valid(&shm, lead.ref.index, why, sizeof(why)), "%s", why);
}
END_TEST

START_TEST(only_the_owner_opens)
{
    struct blocklog_writer w;
    struct flight_ref old = {.index = lead.ref.index,
                             .incarnation = lead.ref.incarnation - 1};

    shm.self = other;
    ck_assert_int_eq(blocklog_open(&shm, lead.ref, &w), DAC_E_STATE);
    shm.self = me;
    ck_assert_int_eq(blocklog_open(&shm, old, &w), DAC_E_STATE);
    ck_assert_int_eq(blocklog_open(&shm, lead.ref, &w), DAC_OK);
}
END_TEST

/* --- bounds ------------------------------------------------------------------------- */

START_TEST(max_bytes_is_a_bound_that_end_may_pass)
{
    struct flight_ref ref = lead.ref;
    uint64_t room;

    lead.writer.max_bytes = 10000;
    append(0, 4992);
    append(1, 4990); /* 9998 with the headers */
    room = lead.writer.max_bytes - lead.writer.offset;
    ck_assert_uint_eq(room, 2);
    uint64_t tail = lead.writer.offset;
    ck_assert_int_eq(blocklog_append(&shm, &lead.writer, RECORD_DELTA, bytes, 0),
                     DAC_E_TOO_LARGE);
    ck_assert_int_eq(blocklog_append(&shm, &lead.writer, RECORD_DELTA, bytes, UINT32_MAX),
                     DAC_E_TOO_LARGE);
    ck_assert_uint_eq(lead.writer.offset, tail);
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, ref.index)->tail), tail);
    end_flight(&ref, &lead.writer, FLIGHT_FAILED, clock_now_ns());
    assert_all_valid();
}
END_TEST

/* Another flight takes all blocks but those that this one has. */
static struct join_result drain_pool(void)
{
    struct join_request req = question(2);
    struct join_result hog;
    enum dac_err e;

    ck_assert_int_eq(index_join(&shm, &req, &hog), DAC_OK);
    hog.writer.max_bytes = UINT64_MAX;
    while ((e = blocklog_append(&shm, &hog.writer, RECORD_DELTA, bytes, 1900)) == DAC_OK)
        ;
    ck_assert_int_eq(e, DAC_E_FULL);
    ck_assert_uint_eq(blocks_in_use(), shm.hdr->block_count);
    ck_assert_uint_eq(blocks_free_hint(&shm), 0);
    return hog;
}

/* From whatever offset a log stands at, END fits when nothing else does. */
START_TEST(end_fits_when_the_pool_is_empty)
{
    struct blocklog_writer *w = &lead.writer;
    struct flight_ref ref = lead.ref;
    uint64_t tail;
    enum dac_err e;

    for (int i = 0; i < _i * 3; i++)
        append((uint32_t)i, 41);
    struct join_result hog = drain_pool();
    while ((e = blocklog_append(&shm, w, RECORD_DELTA, bytes, 100)) == DAC_OK)
        ;
    ck_assert_int_eq(e, DAC_E_FULL);
    while ((e = blocklog_append(&shm, w, RECORD_DELTA, bytes, 0)) == DAC_OK)
        ;
    ck_assert_int_eq(e, DAC_E_FULL);
    tail = w->offset;
    ck_assert_uint_eq(atomic_load(&flight_at(&shm, ref.index)->tail), tail);
    end_flight(&ref, w, FLIGHT_FAILED, clock_now_ns());
    end_flight(&hog.ref, &hog.writer, FLIGHT_FAILED, clock_now_ns());
    assert_all_valid();
}
END_TEST

START_TEST(newcomer_is_refused_whole_when_the_pool_is_empty)
{
    struct join_request req = question(3);
    struct join_result r;
    uint32_t used;

    drain_pool();
    used = flights_in_use();
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_E_FULL);
    /* Also where the hint is wrong and the claim itself succeeds. */
    atomic_store(&shm.hdr->blocks_used, 0);
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_E_FULL);
    ck_assert_uint_eq(flights_in_use(), used);
    assert_all_valid();
}
END_TEST

/* Blocks come back with the incarnation; nobody frees them one by one. */
START_TEST(recycling_frees_every_block)
{
    struct join_result hog = drain_pool();
    uint32_t kept = 0;

    for (uint32_t i = 0; i < shm.hdr->block_count; i++)
        kept += atomic_load(&shm.blocks[i].owner) >> 32 == lead.ref.index + 1;
    end_flight(&hog.ref, &hog.writer, FLIGHT_FAILED, clock_now_ns());
    ck_assert_int_eq(blocklog_append(&shm, &lead.writer, RECORD_DELTA, bytes, 4000),
                     DAC_E_FULL);
    flight_drop_reader(&shm, hog.ref.index);
    atomic_store(&flight_at(&shm, hog.ref.index)->stored, STORED_FAILED);
    ck_assert_int_eq(recycle(hog.ref), DAC_OK);
    ck_assert_uint_eq(blocks_in_use(), kept);
    ck_assert_uint_eq(blocks_free_hint(&shm), shm.hdr->block_count - kept);
    /* The same blocks carry another log, and old links do not show through. */
    struct blocklog_cursor c;
    blocklog_rewind(&c, lead.ref);
    for (uint32_t i = 0; i < 100; i++)
        append(i, 1000 + i);
    for (uint32_t i = 0; i < 100; i++)
        expect(&c, i, 1000 + i);
    assert_all_valid();
}
END_TEST

/* Round and round the pool, much more than it holds. */
START_TEST(pool_never_runs_dry_by_turnover)
{
    for (uint32_t i = 0; i < 3000; i++) {
        struct join_request req = question(100 + i);
        struct join_result r;
        ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
        for (uint32_t k = 0; k < i % 7; k++)
            ck_assert_int_eq(blocklog_append(&shm, &r.writer, RECORD_DELTA, bytes, 1500),
                             DAC_OK);
        end_flight(&r.ref, &r.writer, FLIGHT_FAILED, clock_now_ns());
        flight_drop_reader(&shm, r.ref.index);
        atomic_store(&flight_at(&shm, r.ref.index)->stored, STORED_FAILED);
        ck_assert_int_eq(recycle(r.ref), DAC_OK);
    }
    ck_assert_uint_eq(flights_in_use(), 1);
    ck_assert_uint_eq(atomic_load(&shm.hdr->blocks_used), blocks_in_use());
    assert_all_valid();
}
END_TEST

/* --- broken logs -------------------------------------------------------------------- */

enum breakage {
    LINK_CUT,
    LINK_WILD,
    LINK_CIRCLE,
    FIRST_GONE,
    FOREIGN_BLOCK,
    LENGTH_WILD,
    TYPE_ZERO,
    TYPE_WILD,
    TAIL_IN_RECORD,
    TAIL_TOO_FAR,
    TAIL_IN_HEADER,
    BEHIND_END,
    NO_END,
    BREAKAGES
};

static void break_it(enum breakage how)
{
    struct shm_flight *f = flight_at(&shm, lead.ref.index);
    uint32_t first = atomic_load(&f->first_block) - 1;
    uint32_t second = atomic_load(&shm.blocks[first].next) - 1;
    struct record_header h;
    uint8_t *at = shm.data + (size_t)first * SHM_BLOCK_SIZE;

    memcpy(&h, at, sizeof(h));
    if (how == LINK_CUT)
        atomic_store(&shm.blocks[first].next, 0);
    if (how == LINK_WILD)
        atomic_store(&shm.blocks[second].next, shm.hdr->block_count + 1);
    if (how == LINK_CIRCLE)
        atomic_store(&shm.blocks[second].next, first + 1);
    if (how == FIRST_GONE)
        atomic_store(&f->first_block, 0);
    if (how == FOREIGN_BLOCK)
        atomic_store(&shm.blocks[second].owner, UINT64_C(9) << 32);
    if (how == LENGTH_WILD)
        h.len = UINT32_MAX;
    if (how == TYPE_ZERO)
        h.type = 0;
    if (how == TYPE_WILD)
        h.type = RECORD_TYPE_MAX + 1;
    if (how == TAIL_IN_RECORD)
        atomic_store(&f->tail, atomic_load(&f->tail) - 1);
    if (how == TAIL_IN_HEADER)
        atomic_store(&f->tail, sizeof(h) - 1);
    if (how == TAIL_TOO_FAR)
        atomic_store(&f->tail, UINT64_C(1) << 40);
    if (how == BEHIND_END)
        h.type = RECORD_END;
    if (how == NO_END) {
        struct flight_word w = flight_load(&shm, lead.ref.index);
        w.state = FLIGHT_DONE;
        w.owner = SHM_NO_SLOT;
        atomic_store(&f->word, flight_pack(w));
    }
    memcpy(at, &h, sizeof(h));
}

/* Noticed by blocklog_valid(), and a reader neither crashes nor runs in a circle. */
START_TEST(broken_log_is_noticed)
{
    struct blocklog_cursor c;
    struct blocklog_record r;
    char why[160] = "";
    enum dac_err e;

    for (uint32_t i = 0; i < 6; i++)
        append(i, 1000);
    ck_assert(blocklog_valid(&shm, lead.ref.index, why, sizeof(why)));
    break_it((enum breakage)_i);
    ck_assert(!blocklog_valid(&shm, lead.ref.index, why, sizeof(why)));
    ck_assert_str_ne(why, "");
    blocklog_rewind(&c, lead.ref);
    uint32_t steps = 0;
    while ((e = blocklog_peek(&shm, &c, &r)) == DAC_OK && steps++ < 1000) {
        if (r.len <= sizeof(scratch))
            blocklog_payload(&shm, &c, &r, scratch);
        blocklog_next(&shm, &c, &r);
    }
    ck_assert(e == DAC_E_AGAIN || e == DAC_E_CORRUPT);
    ck_assert_uint_lt(steps, 1000);
}
END_TEST

/* Half of a record's header lies in a block that the chain no longer leads to. */
START_TEST(a_header_cut_in_two_is_noticed)
{
    uint32_t first = atomic_load(&flight_at(&shm, lead.ref.index)->first_block) - 1;
    struct blocklog_cursor c;
    struct blocklog_record r;

    append(0, SHM_BLOCK_SIZE - sizeof(struct record_header) - 4);
    append(1, 10);
    blocklog_rewind(&c, lead.ref);
    ck_assert_int_eq(blocklog_peek(&shm, &c, &r), DAC_OK);
    blocklog_next(&shm, &c, &r);
    ck_assert_int_eq(blocklog_peek(&shm, &c, &r), DAC_OK);
    ck_assert_uint_eq(r.len, 10);
    atomic_store(&shm.blocks[first].next, 0);
    ck_assert_int_eq(blocklog_peek(&shm, &c, &r), DAC_E_CORRUPT);
}
END_TEST

START_TEST(open_refuses_a_cut_chain)
{
    struct shm_flight *f = flight_at(&shm, lead.ref.index);
    struct blocklog_writer w;

    for (uint32_t i = 0; i < 6; i++)
        append(i, 1000);
    atomic_store(&shm.blocks[atomic_load(&f->first_block) - 1].next, 0);
    ck_assert_int_eq(blocklog_open(&shm, lead.ref, &w), DAC_E_CORRUPT);
    atomic_store(&shm.blocks[atomic_load(&f->first_block) - 1].next, UINT32_MAX);
    ck_assert_int_eq(blocklog_open(&shm, lead.ref, &w), DAC_E_CORRUPT);
    atomic_store(&f->first_block, shm.hdr->block_count + 1);
    ck_assert_int_eq(blocklog_open(&shm, lead.ref, &w), DAC_E_CORRUPT);
    atomic_store(&f->tail, 0);
    ck_assert_int_eq(blocklog_open(&shm, lead.ref, &w), DAC_E_CORRUPT);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("block log");
    TCase *t = tcase_create("log");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 20);
    tcase_add_loop_test(t, every_size_comes_back, 0, SIZES_MAX / 250);
    tcase_add_loop_test(t, every_cut_at_a_border, 0, 8);
    tcase_add_test(t, seek_begins_at_any_record);
    tcase_add_test(t, copy_takes_a_part);
    tcase_add_loop_test(t, new_owner_goes_on_at_the_tail, 0, 12);
    tcase_add_test(t, new_owner_at_every_offset);
    tcase_add_test(t, only_the_owner_opens);
    tcase_add_test(t, max_bytes_is_a_bound_that_end_may_pass);
    tcase_add_loop_test(t, end_fits_when_the_pool_is_empty, 0, 20);
    tcase_add_test(t, newcomer_is_refused_whole_when_the_pool_is_empty);
    tcase_add_test(t, recycling_frees_every_block);
    tcase_add_test(t, pool_never_runs_dry_by_turnover);
    tcase_add_loop_test(t, broken_log_is_noticed, 0, BREAKAGES);
    tcase_add_test(t, a_header_cut_in_two_is_noticed);
    tcase_add_test(t, open_refuses_a_cut_chain);
    suite_add_tcase(s, t);
    return run_suite(s);
}
