/*
 * See postgres_value.h. Values in PostgreSQL's binary format: big-endian numbers, times
 * as microseconds since 2000, arrays as a header and elements with their lengths. Parts
 * of the recorder and the workers; no state.
 */
#include "store/postgres_value.h"

#include <endian.h>
#include <string.h>

#define EPOCH_2000_US INT64_C(946684800000000)

#define ARRAY_HEADER       20 /* dimensions, NULLs, element, length, lower bound */
#define ARRAY_HEADER_EMPTY 12

void postgres_args_reset(struct postgres_args *a)
{
    buf_reset(&a->data);
    a->n = 0;
    a->in_array = false;
}

void postgres_args_free(struct postgres_args *a)
{
    buf_free(&a->data);
    a->n = 0;
}

/* --- building ----------------------------------------------------------------------- */

static void put_i32(struct postgres_args *a, int32_t v)
{
    uint32_t be = htobe32((uint32_t)v);

    (void)buf_append(&a->data, &be, sizeof(be));
}

/* One value, or one element; p NULL: NULL. */
static void put(struct postgres_args *a, const void *p, size_t n)
{
    if (a->in_array) {
        a->elements++;
        a->has_null = a->has_null || p == NULL;
        put_i32(a, p == NULL ? -1 : (int32_t)n);
    } else {
        DAC_ASSERT(a->n < POSTGRES_ARGS_MAX);
        a->start[a->n] = a->data.len;
        a->length[a->n++] = p == NULL ? -1 : (int)n;
    }
    if (p != NULL && n > 0)
        (void)buf_append(&a->data, p, n);
}

static void put_i64(struct postgres_args *a, int64_t v)
{
    uint64_t be = htobe64((uint64_t)v);

    put(a, &be, sizeof(be));
}

void postgres_add_null(struct postgres_args *a)
{
    put(a, NULL, 0);
}

void postgres_add_id(struct postgres_args *a, const struct id *id)
{
    if (id_is_zero(id))
        put(a, NULL, 0);
    else
        put(a, id->b, sizeof(id->b));
}

void postgres_add_int(struct postgres_args *a, int64_t v)
{
    put_i64(a, v);
}

void postgres_add_count(struct postgres_args *a, int64_t v)
{
    if (v < 0)
        put(a, NULL, 0);
    else
        put_i64(a, v);
}

void postgres_add_real(struct postgres_args *a, double v)
{
    int64_t bits;

    memcpy(&bits, &v, sizeof(bits));
    put_i64(a, bits);
}

void postgres_add_duration(struct postgres_args *a, double ms)
{
    if (ms < 0)
        put(a, NULL, 0);
    else
        postgres_add_real(a, ms);
}

void postgres_add_time(struct postgres_args *a, int64_t us)
{
    put_i64(a, us - EPOCH_2000_US);
}

void postgres_add_str(struct postgres_args *a, const char *s)
{
    put(a, s, s != NULL ? strlen(s) : 0);
}

void postgres_add_text(struct postgres_args *a, const struct store_text *t)
{
    put(a, t->s, t->n);
}

void postgres_add_bytes(struct postgres_args *a, const void *p, size_t n)
{
    put(a, p, n);
}

void postgres_array_begin(struct postgres_args *a, Oid element)
{
    DAC_ASSERT(!a->in_array && a->n < POSTGRES_ARGS_MAX);
    a->start[a->n] = a->data.len;
    a->in_array = true;
    a->has_null = false;
    a->elements = 0;
    a->element = element;
    char *p = buf_reserve(&a->data, ARRAY_HEADER);

    if (p != NULL)
        a->data.len += ARRAY_HEADER;
}

void postgres_array_end(struct postgres_args *a)
{
    uint32_t header[ARRAY_HEADER / 4] = {
        htobe32(a->elements > 0 ? 1 : 0), htobe32(a->has_null ? 1 : 0),
        htobe32(a->element), htobe32((uint32_t)a->elements), htobe32(1)};

    a->in_array = false;
    if (a->data.failed)
        return;
    memcpy(a->data.data + a->start[a->n], header, ARRAY_HEADER);
    if (a->elements == 0)
        a->data.len = a->start[a->n] + ARRAY_HEADER_EMPTY;
    a->length[a->n] = (int)(a->data.len - a->start[a->n]);
    a->n++;
}

/* --- reading ------------------------------------------------------------------------ */

static bool is_null(const PGresult *res, int row, int column)
{
    return PQgetisnull(res, row, column) != 0;
}

bool postgres_get_id(const PGresult *res, int row, int column, struct id *id)
{
    memset(id, 0, sizeof(*id));
    if (is_null(res, row, column))
        return true;
    if (PQgetlength(res, row, column) != (int)sizeof(id->b))
        return false;
    memcpy(id->b, PQgetvalue(res, row, column), sizeof(id->b));
    return true;
}

static uint64_t get_u64(const char *p)
{
    uint64_t be;

    memcpy(&be, p, sizeof(be));
    return be64toh(be);
}

bool postgres_get_int(const PGresult *res, int row, int column, int64_t *v)
{
    const char *p = PQgetvalue(res, row, column);
    uint32_t four;
    uint16_t two;

    *v = -1;
    if (is_null(res, row, column))
        return true;
    switch (PQgetlength(res, row, column)) {
    case 8:
        *v = (int64_t)get_u64(p);
        return true;
    case 4:
        memcpy(&four, p, sizeof(four));
        *v = (int32_t)be32toh(four);
        return true;
    case 2:
        memcpy(&two, p, sizeof(two));
        *v = (int16_t)be16toh(two);
        return true;
    default:
        return false;
    }
}

bool postgres_get_real(const PGresult *res, int row, int column, double *v)
{
    uint64_t bits;

    *v = -1;
    if (is_null(res, row, column))
        return true;
    if (PQgetlength(res, row, column) != 8)
        return false;
    bits = get_u64(PQgetvalue(res, row, column));
    memcpy(v, &bits, sizeof(*v));
    return true;
}

bool postgres_get_bool(const PGresult *res, int row, int column, bool *v)
{
    *v = false;
    if (is_null(res, row, column))
        return true;
    if (PQgetlength(res, row, column) != 1)
        return false;
    *v = PQgetvalue(res, row, column)[0] != 0;
    return true;
}

bool postgres_get_time(const PGresult *res, int row, int column, int64_t *us)
{
    *us = 0;
    if (is_null(res, row, column))
        return true;
    if (PQgetlength(res, row, column) != 8)
        return false;
    int64_t since_2000 = (int64_t)get_u64(PQgetvalue(res, row, column));

    /* The extremes are PostgreSQL's "infinity". */
    if (since_2000 < -EPOCH_2000_US || since_2000 > INT64_MAX - EPOCH_2000_US)
        return false;
    *us = since_2000 + EPOCH_2000_US;
    return true;
}

bool postgres_get_text(const PGresult *res, int row, int column, struct store_text *t)
{
    *t = (struct store_text){NULL, 0};
    if (is_null(res, row, column))
        return true;
    t->s = PQgetvalue(res, row, column);
    t->n = (size_t)PQgetlength(res, row, column);
    return true;
}
