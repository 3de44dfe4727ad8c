/*
 * `dacctl spool FILE`: moves what waits in a spool that was set aside, or is of a service
 * that is no more, to the database, as the recorder does with its own: oldest first, by
 * the same rows, each of which leaves the file after the commit. Written twice a row is
 * there once, so it may be interrupted at any time and run again.
 *
 * It connects as the service does, and needs no more rights. The spool of a service that
 * runs is refused: that drains it itself.
 */
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "config/config.h"
#include "dacctl_exit.h"
#include "dacctl_store.h"
#include "store/spool.h"
#include "store/store.h"

#define ROWS        256
#define BYTES       (8u << 20)
#define UP_NS       (15 * NS_PER_S) /* to connect, and to migrate */
#define PATIENCE_NS (120 * NS_PER_S)
#define PROGRESS_NS NS_PER_S

struct moving {
    struct event_base *base;
    struct store *to;
    struct spool *from;
    const char *path;
    uint64_t total; /* rows */
    uint64_t moved;
    uint64_t refused;
    enum dac_err e;      /* of the batch that runs */
    bool ended;          /* it does not any more */
    char copy[PATH_MAX]; /* "": it is the file itself that is moved */
};

static const char advice[] =
    "dacctl: --all moves what can be read, by way of a copy beside the file\n";

static void remove_copy(struct moving *m)
{
    static const char *const suffixes[] = {"", "-wal", "-shm"};
    char path[PATH_MAX + 8];

    spool_close(m->from);
    m->from = NULL;
    for (size_t i = 0; i < DAC_ARRAY_LEN(suffixes); i++) {
        snprintf(path, sizeof(path), "%s%s", m->copy, suffixes[i]);
        unlink(path);
    }
    m->copy[0] = '\0';
}

/* --- what is asked for -------------------------------------------------------------- */

static bool is_same_file(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

/* Where to; the strings are those of `cfg` or the arguments. */
static bool find_database(const struct store_arguments *args, struct config **cfg,
                          struct store_options *opt)
{
    struct config_problems problems = {0};
    bool ok = true;

    if (args->database != NULL) {
        if (database_is_conninfo(args->database))
            opt->postgres = args->database;
        else
            opt->sqlite = args->database;
    } else if (config_look(args->conf, (const char *const *)environ, cfg, &problems) !=
               DAC_OK) {
        config_problems_print(&problems, stderr);
        fputs("dacctl: the configuration cannot be used (-d names a database without "
              "it)\n",
              stderr);
        ok = false;
    } else {
        opt->postgres = (*cfg)->postgres;
        opt->sqlite = (*cfg)->sqlite;
    }
    config_problems_free(&problems);
    if (ok && opt->postgres == NULL && access(opt->sqlite, F_OK) != 0) {
        fprintf(stderr, "dacctl: there is no database \"%s\"\n", opt->sqlite);
        ok = false;
    }
    return ok;
}

static struct spool_options options(const struct moving *m, const char *path)
{
    return (struct spool_options){.base = m->base,
                                  .path = path,
                                  .max_bytes = INT64_MAX,
                                  .threads_max = SIZE_MAX / 2,
                                  .turns_kept = SIZE_MAX / 2};
}

static bool open_spool(struct moving *m, const char *path)
{
    struct spool_options opt = options(m, path);
    char why[512] = "";

    opt.as_it_is = true;
    enum dac_err e = spool_open(&opt, &m->from, why, sizeof(why));

    if (e == DAC_OK)
        return true;
    fprintf(stderr, "dacctl: %s\n", why);
    if (e == DAC_E_CORRUPT)
        fputs(advice, stderr);
    return false;
}

/* A copy beside the file, so that that stays as it is. */
static bool open_copy(struct moving *m, const char *path)
{
    char why[512] = "";
    bool whole = false;

    snprintf(m->copy, sizeof(m->copy), "%s.copy", path);
    if (access(m->copy, F_OK) == 0) {
        fprintf(stderr,
                "dacctl: \"%s\" is there already: move that (without --all), or remove "
                "it\n",
                m->copy);
        return false;
    }
    if (access(path, R_OK | W_OK) != 0) {
        fprintf(stderr, "dacctl: could not open \"%s\": %s\n", path, strerror(errno));
        return false;
    }
    struct spool_options opt = options(m, m->copy);
    enum dac_err e = spool_open(&opt, &m->from, why, sizeof(why));

    if (e == DAC_OK)
        e = spool_salvage(m->from, path, &whole, why, sizeof(why));
    if (e == DAC_OK && (e = spool_queue_all(m->from)) != DAC_OK)
        snprintf(why, sizeof(why), "%s", spool_error(m->from));
    if (e != DAC_OK) {
        fprintf(stderr, "dacctl: %s\n", why);
        remove_copy(m);
        return false;
    }
    if (!whole)
        fprintf(stderr, "dacctl: \"%s\" is damaged: parts of it cannot be read\n", path);
    return true;
}

/* --- moving ------------------------------------------------------------------------- */

/* Turns the loop until something is so, or the time is over. */
static bool turn_until(struct moving *m, bool (*is_so)(const struct moving *),
                       uint64_t ns)
{
    uint64_t until = clock_now_ns() + ns;
    const struct timeval tick = {.tv_usec = 20000};

    while (!is_so(m) && clock_now_ns() < until) {
        event_base_loopexit(m->base, &tick);
        if (event_base_loop(m->base, EVLOOP_NO_EXIT_ON_EMPTY) < 0)
            return false;
    }
    return is_so(m);
}

static bool is_up(const struct moving *m)
{
    return store_up(m->to) || store_refused(m->to);
}

static bool has_ended(const struct moving *m)
{
    return m->ended;
}

static void on_written(void *arg, enum dac_err e)
{
    struct moving *m = arg;

    m->e = e;
    m->ended = true;
    event_base_loopbreak(m->base);
}

static bool open_database(struct moving *m, const struct store_options *opt)
{
    char why[512] = "";

    if (store_open(m->base, opt, &m->to, why, sizeof(why)) == DAC_OK &&
        store_migrate(m->to, why, sizeof(why)) == DAC_OK) {
        if (turn_until(m, is_up, UP_NS) && store_up(m->to))
            return true;
        snprintf(why, sizeof(why), "%s", store_error(m->to));
    }
    fprintf(stderr, "dacctl: %s\n", why[0] != '\0' ? why : "the database is not there");
    return false;
}

static void note_refused(struct moving *m, const struct spool_batch *b)
{
    for (size_t i = 0; i < b->n; i++) {
        if (b->rows[i].result == DAC_OK || b->rows[i].kind == STORE_COUNTS ||
            b->rows[i].kind == STORE_ALIAS)
            continue;
        m->refused++;
        fprintf(stderr, "dacctl: a row was refused: %s\n", b->rows[i].why);
    }
}

static bool move_batch(struct moving *m, struct spool_batch *b)
{
    m->ended = false;
    store_write(m->to, b->rows, b->n, PATIENCE_NS, on_written, m);
    (void)turn_until(m, has_ended, UINT64_MAX / 2);
    if (m->e != DAC_OK) {
        fprintf(stderr, "dacctl: %s\n", store_error(m->to));
        spool_put_back(m->from);
        return false;
    }
    note_refused(m, b);
    if (spool_done(m->from, b) == DAC_OK)
        return true;
    fprintf(stderr, "dacctl: %s\n", spool_error(m->from));
    return false;
}

static bool move_all(struct moving *m)
{
    uint64_t told = clock_now_ns();
    bool ok = true, more = true;

    while (ok && more) {
        struct spool_batch b;

        ok = spool_next(m->from, ROWS, BYTES, &b) == DAC_OK;
        if (!ok)
            fprintf(stderr, "dacctl: %s\n%s", spool_error(m->from), advice);
        more = b.n > 0;
        if (ok && more) {
            ok = move_batch(m, &b);
            m->moved += ok ? b.n : 0;
        }
        spool_batch_free(&b);
        if (ok && more && clock_now_ns() - told >= PROGRESS_NS) {
            told = clock_now_ns();
            fprintf(stderr, "dacctl: %" PRIu64 " of %" PRIu64 " rows\n", m->moved,
                    m->total);
        }
    }
    if (m->from)
        spool_put_back(m->from);
    return ok;
}

/* --- the whole ---------------------------------------------------------------------- */

/* `left`: where the rows are that were not moved, NULL: there are none. */
static void put_json(const struct moving *m, bool dry_run, const char *left,
                     struct buf *b)
{
    buf_printf(b,
               "{\"dry_run\":%s,\"rows\":%" PRIu64 ",\"moved\":%" PRIu64
               ",\"refused\":%" PRIu64 ",\"left_in\":",
               dry_run ? "true" : "false", m->total, m->moved, m->refused);
    if (left)
        json_put_string(b, left, strlen(left));
    else
        buf_puts(b, "null");
    buf_puts(b, "}\n");
}

static void put_text(const struct moving *m, const char *left, struct buf *b)
{
    buf_printf(b, "moved %" PRIu64 " rows of %" PRIu64 "\n", m->moved, m->total);
    if (m->refused > 0)
        buf_printf(b, "%" PRIu64 " of them were refused; they are in table rejected\n",
                   m->refused);
    if (left)
        buf_printf(b, "the others are in \"%s\": run dacctl spool with that again\n",
                   left);
}

static int move(struct moving *m, const struct store_options *opt, bool json)
{
    bool ok = m->total == 0 || (open_database(m, opt) && move_all(m));
    const char *left = m->copy[0] != '\0' ? m->copy : m->path;
    struct buf b = BUF_INIT(4 * PATH_MAX);

    if (json)
        put_json(m, false, ok ? NULL : left, &b);
    else
        put_text(m, ok ? NULL : left, &b);
    if (ok && m->copy[0] != '\0')
        remove_copy(m);
    return store_print(&b, ok ? EXIT_DONE : EXIT_NOT_DONE);
}

static int run(struct moving *m, const struct store_arguments *args,
               const struct store_options *opt)
{
    struct buf b = BUF_INIT(4 * PATH_MAX);
    struct spool_stats stats;

    m->path = args->file;
    if (args->all ? !open_copy(m, args->file) : !open_spool(m, args->file))
        return EXIT_UNUSABLE;
    spool_stats(m->from, &stats);
    m->total = stats.rows;
    if (!args->dry_run)
        return move(m, opt, args->json);
    if (args->json)
        put_json(m, true, m->total > 0 ? args->file : NULL, &b);
    else
        buf_printf(&b, "to be moved: %" PRIu64 " rows\n", m->total);
    if (m->copy[0] != '\0')
        remove_copy(m);
    return store_print(&b, EXIT_DONE);
}

int dacctl_spool(const struct store_arguments *args)
{
    struct store_options opt = {.application = "dacctl"};
    struct config *cfg = NULL;
    struct moving m = {0};
    int rc = EXIT_UNUSABLE;

    log_set_identity("dacctl");
    log_set_level(LOG_LEVEL_ERROR);
    if (!find_database(args, &cfg, &opt))
        goto out;
    if (cfg != NULL && is_same_file(cfg->spool, args->file)) {
        fprintf(stderr,
                "dacctl: \"%s\" is the spool of the service, which drains it itself\n",
                args->file);
        goto out;
    }
    m.base = event_base_new();
    if (m.base == NULL) {
        fputs("dacctl: out of memory\n", stderr);
        goto out;
    }
    rc = run(&m, args, &opt);
    store_close(m.to);
    spool_close(m.from);
    event_base_free(m.base);
out:
    config_free(cfg);
    return rc;
}
