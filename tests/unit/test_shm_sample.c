/*
 * The ring of samples: order, wrap, hits, torn entries, and sample_valid().
 */
#include "tests/shm/segment_fixture.h"

static struct sample out[SHM_SAMPLES + 8];

static void setup(void)
{
    fixture_open(64);
}

static void teardown(void)
{
    fixture_close();
}

static struct sample numbered(uint64_t i)
{
    return (struct sample){.ended_ns = i + 1000,
                           .question = i + 6,
                           .ttft_us = (uint32_t)i + 1,
                           .latency_us = (uint32_t)i + 2,
                           .queue_us = (uint32_t)i + 3,
                           .own_us = (uint32_t)i + 7,
                           .call_us = (uint32_t)i + 8,
                           .call_ttft_us = (uint32_t)i + 9,
                           .provider = (uint32_t)i % SHM_PROVIDERS_MAX,
                           .status = (enum turn_status)(1 + i % 4),
                           .followers = (uint32_t)i + 4,
                           .hits = (uint32_t)i + 5};
}

/* Check notes every assertion in a file: so one per call here, not one per sample. */
static void add_up_to(uint64_t n)
{
    uint64_t have = atomic_load(&shm.hdr->sample_seq);
    bool numbers_right = true;

    for (uint64_t i = have; i < n; i++) {
        struct sample s = numbered(i);
        numbers_right = sample_add(&shm, &s, NULL) == i + 1 && numbers_right;
    }
    ck_assert(numbers_right);
}

static bool same(const struct sample *x, const struct sample *y)
{
    return x->ended_ns == y->ended_ns && x->question == y->question &&
           x->own_us == y->own_us && x->call_us == y->call_us &&
           x->call_ttft_us == y->call_ttft_us && x->provider == y->provider &&
           x->ttft_us == y->ttft_us && x->latency_us == y->latency_us &&
           x->queue_us == y->queue_us && x->status == y->status &&
           x->followers == y->followers && x->hits == y->hits;
}

static void expect_newest(size_t asked, uint64_t n)
{
    size_t want = n < asked ? (size_t)n : asked;
    size_t wrong = 0;

    if (want > SHM_SAMPLES)
        want = SHM_SAMPLES;
    memset(out, 0xee, sizeof(out));
    ck_assert_uint_eq(sample_read(&shm, out, asked), want);
    for (size_t i = 0; i < want; i++) {
        struct sample s = numbered(n - 1 - i);
        wrong += !same(&out[i], &s);
    }
    ck_assert_uint_eq(wrong, 0);
}

static const uint64_t counts[] = {0,
                                  1,
                                  2,
                                  100,
                                  SHM_SAMPLES,
                                  SHM_SAMPLES - 1,
                                  SHM_SAMPLES + 1,
                                  3 * (uint64_t)SHM_SAMPLES + 77};

START_TEST(newest_come_first)
{
    static const size_t asked[] = {0, 1, 100, SHM_SAMPLES, SHM_SAMPLES + 8};
    char why[160];

    add_up_to(counts[_i]);
    for (size_t i = 0; i < DAC_ARRAY_LEN(asked); i++)
        expect_newest(asked[i], counts[_i]);
    ck_assert_msg(sample_valid(&shm, why, sizeof(why)), "%s", why);
}
END_TEST

START_TEST(late_hits_reach_their_sample_while_it_is_there)
{
    add_up_to(10);
    sample_add_hit(&shm, 0); /* a flight without a sample */
    sample_add_hit(&shm, 4);
    sample_add_hit(&shm, 4);
    ck_assert_uint_eq(sample_read(&shm, out, 10), 10);
    ck_assert_uint_eq(out[10 - 4].hits, numbered(3).hits + 2);
    add_up_to(SHM_SAMPLES + 4); /* number 3 is gone */
    sample_add_hit(&shm, 4);
    expect_newest(100, SHM_SAMPLES + 4);
    ck_assert_uint_eq(sample_read(&shm, out, SHM_SAMPLES), SHM_SAMPLES);
    ck_assert_uint_eq(out[0].hits, numbered(SHM_SAMPLES + 3).hits);
}
END_TEST

/* Its writer died inside it: readers leave it out, the next writer writes it anew. */
START_TEST(torn_sample_is_left_out_and_written_anew)
{
    uint64_t n = counts[_i];
    char why[160];

    add_up_to(n);
    atomic_store(&shm.samples[n % SHM_SAMPLES].seq, 0);
    atomic_store(&shm.samples[n % SHM_SAMPLES].followers, 0xdead0000u);
    ck_assert_msg(sample_valid(&shm, why, sizeof(why)), "%s", why);
    size_t got = sample_read(&shm, out, SHM_SAMPLES);
    ck_assert_uint_eq(got, n < SHM_SAMPLES ? n : SHM_SAMPLES - 1);
    size_t torn = 0;
    for (size_t i = 0; i < got; i++)
        torn += out[i].followers == 0xdead0000u;
    ck_assert_uint_eq(torn, 0);
    add_up_to(n + 1);
    expect_newest(SHM_SAMPLES, n + 1);
    /* Or it died before it counted it. */
    atomic_store(&shm.hdr->sample_seq, n);
    ck_assert_msg(sample_valid(&shm, why, sizeof(why)), "%s", why);
    add_up_to(n + 1);
    expect_newest(SHM_SAMPLES, n + 1);
}
END_TEST

START_TEST(valid_names_wrong_numbers)
{
    char why[160];

    add_up_to(100);
    atomic_store(&shm.samples[50].seq, 50);
    ck_assert(!sample_valid(&shm, why, sizeof(why)));
    atomic_store(&shm.samples[50].seq, 51 + SHM_SAMPLES);
    ck_assert(!sample_valid(&shm, why, sizeof(why)));
    atomic_store(&shm.samples[50].seq, 0);
    ck_assert(sample_valid(&shm, why, sizeof(why)));
    atomic_store(&shm.samples[51].seq, 0);
    ck_assert(!sample_valid(&shm, why, sizeof(why)));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("samples");
    TCase *t = tcase_create("samples");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, newest_come_first, 0, DAC_ARRAY_LEN(counts));
    tcase_add_test(t, late_hits_reach_their_sample_while_it_is_there);
    tcase_add_loop_test(t, torn_sample_is_left_out_and_written_anew, 0,
                        DAC_ARRAY_LEN(counts));
    tcase_add_test(t, valid_names_wrong_numbers);
    suite_add_tcase(s, t);
    return run_suite(s);
}
