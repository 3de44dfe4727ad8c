/*
 * See spool_fixture.h.
 */
#include "spool_fixture.h"

#include <check.h>

#include "store_fixture.h"

struct spool *sx_spool;
size_t sx_turns_kept = 4;

struct spool *sx_open(uint64_t max_bytes, size_t threads)
{
    char why[512] = "";
    struct spool *out = NULL;
    const struct spool_options opt = {.base = fx_base(),
                                      .path = fx_db,
                                      .max_bytes = max_bytes,
                                      .threads_max = threads,
                                      .aliases_max = 64,
                                      .turns_kept = sx_turns_kept};

    ck_assert_msg(spool_open(&opt, &out, why, sizeof why) == DAC_OK, "%s", why);
    return out;
}

void sx_setup(void)
{
    fx_setup();
    sx_spool = sx_open(64u << 20, 8);
}

void sx_teardown(void)
{
    spool_close(sx_spool);
    fx_teardown();
}

void sx_put_turn(unsigned n, unsigned thread)
{
    struct store_turn t = fx_turn(n, thread);
    struct store_row row = fx_turn_row(&t);

    row.result = DAC_OK;
    ck_assert_msg(spool_put(sx_spool, &row, 1) == DAC_OK, "%s", spool_error(sx_spool));
    ck_assert_int_eq(row.result, DAC_OK);
    ck_assert_int_eq(row.place, STORE_IN_SPOOL);
}

void sx_keep_turn(unsigned n, unsigned thread)
{
    struct store_turn t = fx_turn(n, thread);
    struct store_row row = fx_turn_row(&t);

    row.result = DAC_OK;
    spool_keep(sx_spool, &row, 1);
}

uint64_t sx_rows_left(void)
{
    struct spool_stats s;

    spool_stats(sx_spool, &s);
    return s.rows;
}
