/*
 * What the tests of the store share: a folder of its own for each test, rows made from
 * small numbers, and queries that are waited for.
 */
#ifndef DAC_TESTS_STORE_FIXTURE_H
#define DAC_TESTS_STORE_FIXTURE_H

#include <event2/event.h>
#include <sqlite3.h>

#include "store/store.h"

#define FX_MAX_ROWS 256
#define FX_START_US INT64_C(1767225600000000) /* 2026-01-01 */

/* Which store the test is about: SQLite, or a new database of the program's PostgreSQL
 * server (postgres_fixture.h), which is then running. */
extern bool fx_postgres;

/* Makes the folder; the path of the database in it is fx_db. */
extern char fx_dir[64];
extern char fx_db[96];
void fx_setup(void);
void fx_teardown(void);
/* Called by the writer between the last row of a batch and its commit; NULL: nobody. */
extern void (*fx_alive)(void);
/* How long fx_write() lets the store take; 10 s. */
extern uint64_t fx_patience_ns;

/* The writer, opened and migrated; aborts the test if that fails. Its callbacks come from
 * fx_base(), which is made anew in a forked child. */
struct store *fx_writer(void);
struct event_base *fx_base(void);
struct store_reader *fx_reader(struct event_base *base);

/* Ids that ascend with `n`; kinds are told apart by `kind`. */
struct id fx_id(char kind, unsigned n);
struct store_text fx_text(const char *s);
/* Thread `n` of "acme", a second later than the one before. */
struct store_thread fx_thread(unsigned n);
/* Turn `n` of thread `thread` (0: stateless), complete, with both messages, a second
 * later than the one before. */
struct store_turn fx_turn(unsigned n, unsigned thread);
struct store_row fx_thread_row(const struct store_thread *t);
struct store_row fx_turn_row(const struct store_turn *t);
struct store_row fx_counts_row(const struct id *turn, int64_t followers, int64_t hits);
/* STORE_TITLE or STORE_DELETE of thread `n` of "acme". */
struct store_row fx_change_row(enum store_row_kind kind, unsigned n, const char *title);
/* A key of "acme" that stands for turn `turn`, first used `at_us`; its body's digest is
 * made from the turn's number. */
struct store_row fx_alias_row(unsigned key, unsigned turn, int64_t at_us);
/* The digest of key `key`. */
void fx_digest(unsigned key, uint8_t out[32]);
/* Writes a batch and waits for its callback; what that said. */
enum dac_err fx_write(struct store *st, struct store_row *rows, size_t n);
/* A batch of one row: what the batch said, or else the row. */
enum dac_err fx_write_one(struct store *st, struct store_row row);
/* Stores as a batch of its own; DAC_OK is asserted. */
void fx_store_thread(struct store *st, unsigned n);
void fx_store_turn(struct store *st, const struct store_turn *t);

/* Runs SQL by a connection of its own; the first column of the first row. */
long long fx_int(const char *sql);
void fx_exec(const char *sql);

/* One answer of any query; texts are copied. */
struct fx_answer {
    int calls;
    enum dac_err e;
    size_t n;
    bool more;
    struct id ids[FX_MAX_ROWS];
    char texts[FX_MAX_ROWS][32]; /* title or content, cut */
    char roles[FX_MAX_ROWS];     /* 'u' or 'a' */
    struct id last_turn;
    struct store_alias alias;
    struct store_turn turn; /* its words and texts are in the buffers below */
    char question[64], answer[64], status[16], finish[32], error[32], citations[64],
        tool_calls[64];
};

void fx_on_thread(void *arg, enum dac_err e, const struct store_thread *t);
void fx_on_threads(void *arg, enum dac_err e, const struct store_thread *t, size_t n,
                   bool more);
void fx_on_messages(void *arg, enum dac_err e, const struct store_message *m, size_t n,
                    bool more);
void fx_on_turn(void *arg, enum dac_err e, const struct store_turn *t);
void fx_on_alias(void *arg, enum dac_err e, const struct store_alias *s);
/* Asks and waits for the answer. */
void fx_ask_alias(struct event_base *base, struct store_reader *r, const char *org,
                  unsigned key, int64_t since_us, struct fx_answer *a);
/* Runs the loop until a->calls is 1. */
void fx_wait(struct event_base *base, const struct fx_answer *a);

#endif
