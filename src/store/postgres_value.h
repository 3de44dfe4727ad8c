/*
 * Values as PostgreSQL's binary format has them: building the parameters of one statement
 * and reading the columns of a result. Times are wall clock microseconds since 1970, ids
 * uuid, texts UTF-8. Used by the writer and the readers.
 */
#ifndef DAC_STORE_POSTGRES_VALUE_H
#define DAC_STORE_POSTGRES_VALUE_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/ids.h"
#include "store/store.h"

/* OIDs of the types in use; they are the same in every database. */
enum {
    POSTGRES_BYTEA = 17,
    POSTGRES_INT8 = 20,
    POSTGRES_INT4 = 23,
    POSTGRES_TEXT = 25,
    POSTGRES_FLOAT8 = 701,
    POSTGRES_TIMESTAMPTZ = 1184,
    POSTGRES_UUID = 2950,
    POSTGRES_BYTEA_ARRAY = 1001,
    POSTGRES_INT4_ARRAY = 1007,
    POSTGRES_TEXT_ARRAY = 1009,
    POSTGRES_INT8_ARRAY = 1016,
    POSTGRES_FLOAT8_ARRAY = 1022,
    POSTGRES_TIMESTAMPTZ_ARRAY = 1185,
    POSTGRES_UUID_ARRAY = 2951
};

#define POSTGRES_ARGS_MAX       32
#define POSTGRES_ARGS_BYTES_MAX (UINT64_C(512) << 20)

/* The parameters of one statement, in order. Each value is added by one of the functions
 * below; between postgres_array_begin() and _end() they are the elements of one array. A
 * failure (no memory, too large) is remembered in `data.failed`, for postgres_run(). */
struct postgres_args {
    struct buf data; /* owned */
    int n;
    size_t start[POSTGRES_ARGS_MAX];
    int length[POSTGRES_ARGS_MAX]; /* -1: NULL */
    bool in_array;
    bool has_null;
    int32_t elements;
    Oid element;
};

#define POSTGRES_ARGS_INIT                                                               \
    ((struct postgres_args){.data = BUF_INIT(POSTGRES_ARGS_BYTES_MAX)})

/* Empties it and keeps the memory. */
void postgres_args_reset(struct postgres_args *a);
void postgres_args_free(struct postgres_args *a);

void postgres_add_null(struct postgres_args *a);
void postgres_add_id(struct postgres_args *a, const struct id *id); /* zero: NULL */
void postgres_add_int(struct postgres_args *a, int64_t v);          /* int8 */
void postgres_add_count(struct postgres_args *a, int64_t v);        /* negative: NULL */
void postgres_add_real(struct postgres_args *a, double v);          /* float8 */
void postgres_add_duration(struct postgres_args *a, double ms);     /* negative: NULL */
void postgres_add_time(struct postgres_args *a, int64_t us);        /* timestamptz */
void postgres_add_str(struct postgres_args *a, const char *s);      /* NULL: NULL */
void postgres_add_text(struct postgres_args *a, const struct store_text *t);
void postgres_add_bytes(struct postgres_args *a, const void *p, size_t n); /* bytea */

void postgres_array_begin(struct postgres_args *a, Oid element);
void postgres_array_end(struct postgres_args *a);

/* Columns; a NULL reads as zero, -1, NULL as the writers above have it. False: the column
 * has another form, so the row is not this program's. Texts are borrowed from `res`. */
bool postgres_get_id(const PGresult *res, int row, int column, struct id *id);
bool postgres_get_int(const PGresult *res, int row, int column,
                      int64_t *v); /* int2/4/8; NULL: -1 */
bool postgres_get_real(const PGresult *res, int row, int column,
                       double *v); /* NULL: -1 */
bool postgres_get_bool(const PGresult *res, int row, int column, bool *v);
bool postgres_get_time(const PGresult *res, int row, int column,
                       int64_t *us); /* NULL: 0 */
/* Of text, varchar and json; jsonb has to be cast to text in the query. */
bool postgres_get_text(const PGresult *res, int row, int column, struct store_text *t);

#endif
