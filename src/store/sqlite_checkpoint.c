/*
 * See sqlite_checkpoint.h. The thread sleeps until it is wanted or over; one mutex guards
 * the three flags, nothing else is shared.
 */
#include "store/sqlite_checkpoint.h"

#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

struct sqlite_checkpoint {
    char *path; /* owned */
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool wanted; /* until it is done */
    bool over;
};

/* Its closing must not do what is asked for at other times. */
static sqlite3 *connect_to(const char *path)
{
    sqlite3 *db = NULL;

    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) ==
            SQLITE_OK &&
        sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL) == SQLITE_OK &&
        sqlite3_exec(db, "PRAGMA synchronous = FULL", NULL, NULL, NULL) == SQLITE_OK)
        return db;
    sqlite3_close(db);
    return NULL;
}

static void move_log(sqlite3 *db)
{
    /* A connection knows of the log once it has read. */
    if (sqlite3_exec(db, "SELECT count(*) FROM sqlite_master", NULL, NULL, NULL) ==
        SQLITE_OK)
        (void)sqlite3_wal_checkpoint_v2(db, "main", SQLITE_CHECKPOINT_PASSIVE, NULL,
                                        NULL);
}

static void *run(void *arg)
{
    struct sqlite_checkpoint *c = arg;
    sqlite3 *db = NULL;

    pthread_mutex_lock(&c->lock);
    while (!c->over) {
        if (!c->wanted) {
            pthread_cond_wait(&c->changed, &c->lock);
            continue;
        }
        pthread_mutex_unlock(&c->lock);
        if (db == NULL)
            db = connect_to(c->path);
        if (db != NULL)
            move_log(db);
        pthread_mutex_lock(&c->lock);
        c->wanted = false;
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    sqlite3_close(db);
    return NULL;
}

struct sqlite_checkpoint *sqlite_checkpoint_new(const char *path)
{
    struct sqlite_checkpoint *c = calloc(1, sizeof(*c));

    if (c == NULL || (c->path = strdup(path)) == NULL) {
        free(c);
        return NULL;
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    return c;
}

/* All signals stay with the loop's thread. */
static bool start(struct sqlite_checkpoint *c)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    c->started = pthread_create(&c->thread, NULL, run, c) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return c->started;
}

bool sqlite_checkpoint_begin(struct sqlite_checkpoint *c)
{
    if (!c->started && !start(c))
        return false;
    pthread_mutex_lock(&c->lock);
    c->wanted = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return true;
}

void sqlite_checkpoint_wait(struct sqlite_checkpoint *c)
{
    pthread_mutex_lock(&c->lock);
    while (c->started && c->wanted)
        pthread_cond_wait(&c->changed, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

void sqlite_checkpoint_free(struct sqlite_checkpoint *c)
{
    if (c == NULL)
        return;
    pthread_mutex_lock(&c->lock);
    c->over = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (c->started)
        pthread_join(c->thread, NULL);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->path);
    free(c);
}
