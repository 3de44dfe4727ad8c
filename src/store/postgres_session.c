/*
 * See postgres_session.h. In the recorder and the workers.
 *
 *   asked for its process id -> another one's: a pooler
 *                            -> its own: told the settings -> has them
 *
 * Until the answer has come transactions begin with the settings.
 */
#include "store/postgres_session.h"

#include "base/log.h"

static void on_pid(void *arg, PGresult *res)
{
    struct postgres_session *s = arg;
    int64_t pid;

    s->direct = PQresultStatus(res) == PGRES_TUPLES_OK && PQntuples(res) == 1 &&
                postgres_get_int(res, 0, 0, &pid) &&
                pid == postgres_conn_backend_pid(s->conn);
    if (!s->direct)
        log_debug(0, "PostgreSQL is behind a pooler: each transaction brings its "
                     "settings along");
}

void postgres_session_begin(struct postgres_session *s, struct postgres_conn *c,
                            const struct postgres_session_sql *sql)
{
    *s = (struct postgres_session){.conn = c, .sql = sql};
    /* What could not be sent is a lost connection, whose `down` follows. */
    if (postgres_run(c, sql->pid, NULL, on_pid, s) != DAC_OK ||
        postgres_sync(c, NULL, NULL) != DAC_OK)
        log_debug(0, "a session could not be asked for its process id");
}

static void on_told(void *arg, PGresult *res)
{
    struct postgres_session *s = arg;

    s->has = PQresultStatus(res) == PGRES_TUPLES_OK ? s->asked : 0;
    if (s->has == 0)
        s->asked = 0;
}

/* A transaction of its own: what is set in one that fails is taken back. */
static enum dac_err tell(struct postgres_session *s, const struct postgres_args *a,
                         uint64_t which)
{
    enum dac_err e = postgres_run(s->conn, s->sql->session, a, on_told, s);

    s->asked = which;
    s->has = 0;
    return e == DAC_OK ? postgres_sync(s->conn, NULL, NULL) : e;
}

enum dac_err postgres_session_set(struct postgres_session *s,
                                  const struct postgres_args *a, uint64_t which,
                                  postgres_result_cb cb, void *arg)
{
    enum dac_err e = DAC_OK;

    if (s->has == which)
        return DAC_OK;
    if (s->direct && s->asked != which)
        e = tell(s, a, which);
    return e == DAC_OK ? postgres_run(s->conn, s->sql->local, a, cb, arg) : e;
}
