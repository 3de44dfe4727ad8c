/*
 * See postgres_hosts.h.
 *
 * libpq tells what a string says, defaults included, only about a connection; so one is
 * begun with a parameter that fails before anything is looked up or opened, asked, and
 * thrown away. The thread works on a job of its own that both sides hold: whoever lets go
 * last frees it.
 */
#include "store/postgres_hosts.h"

#include <arpa/inet.h>
#include <event2/event.h>
#include <libpq-fe.h>
#include <netdb.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"

#define NAMES_MAX    32 /* in one string */
#define PER_NAME_MAX 8  /* addresses of one name */
#define LISTS_MAX    65536

struct name {
    char *host;     /* owned; "" is the default */
    char *hostaddr; /* owned; "" if the string has none */
    char *port;     /* owned; "" is the default */
};

struct address {
    size_t name;   /* index of its name */
    char text[46]; /* INET6_ADDRSTRLEN; "": as the string has it */
};

struct job {
    atomic_int holders;
    int fd;                /* eventfd; readable when done */
    char *host[NAMES_MAX]; /* owned; NULL: needs no look-up */
    size_t count;
    struct address found[NAMES_MAX * PER_NAME_MAX];
    size_t found_count;
    char why[256];
};

struct postgres_hosts {
    struct event_base *base;
    struct name names[NAMES_MAX];
    size_t count;
    unsigned timeout_s;
    char *passfile; /* owned; NULL: none */
    struct address addresses[NAMES_MAX * PER_NAME_MAX];
    size_t address_count;
    struct job *job;     /* held, NULL: none runs */
    struct event *done;  /* of the job's fd */
    struct event *later; /* calls back where nothing is to be looked up */
    postgres_hosts_cb cb;
    void *arg;
    struct buf list[3];
};

void postgres_hosts_blank(const char *message, char *out, size_t n)
{
    bool quoted = false;
    size_t k = 0;

    for (const char *p = message; *p != '\0' && *p != '\n' && k + 4 < n; p++) {
        if (*p == '"') {
            if (!quoted)
                k += (size_t)snprintf(out + k, n - k, "\"..");
            quoted = !quoted;
        }
        if (!quoted)
            out[k++] = *p;
    }
    out[k] = '\0';
}

/* --- what the string says ----------------------------------------------------------- */

/* Element `i` of a comma-separated list, "" behind its end; a list of one counts for all
 * where `spread`. */
static char *element(const char *list, size_t i, bool spread)
{
    if (list == NULL)
        return strdup("");
    if (spread && strchr(list, ',') == NULL)
        return strdup(list);
    for (; i > 0 && list != NULL; i--) {
        list = strchr(list, ',');
        if (list != NULL)
            list++;
    }
    return list == NULL ? strdup("") : strndup(list, strcspn(list, ","));
}

static size_t elements(const char *list)
{
    size_t n = 1;

    if (list == NULL || list[0] == '\0')
        return 0;
    for (; *list != '\0'; list++)
        n += *list == ',';
    return n;
}

static const char *option(const PQconninfoOption *o, const char *keyword)
{
    for (; o->keyword != NULL; o++) {
        if (strcmp(o->keyword, keyword) == 0)
            return o->val != NULL && o->val[0] != '\0' ? o->val : NULL;
    }
    return NULL;
}

/* As libpq does: in the home folder where nothing else names it. */
static char *passfile_of(const PQconninfoOption *o)
{
    const char *home = getenv("HOME");
    struct passwd pw, *found = NULL;
    char space[4096];
    char *path = NULL;

    if (option(o, "passfile") != NULL)
        return strdup(option(o, "passfile"));
    if (home == NULL || home[0] == '\0') {
        if (getpwuid_r(geteuid(), &pw, space, sizeof(space), &found) != 0 ||
            found == NULL)
            return NULL;
        home = pw.pw_dir;
    }
    return asprintf(&path, "%s/.pgpass", home) < 0 ? NULL : path;
}

const char *postgres_hosts_open_passfile(const struct postgres_hosts *h)
{
    struct stat st;

    if (h->passfile == NULL || stat(h->passfile, &st) != 0 || !S_ISREG(st.st_mode) ||
        (st.st_mode & (S_IRWXG | S_IRWXO)) == 0)
        return NULL;
    return h->passfile;
}

static enum dac_err read_names(struct postgres_hosts *h, const PQconninfoOption *o,
                               char *why, size_t n)
{
    const char *host = option(o, "host");
    const char *hostaddr = option(o, "hostaddr");
    const char *port = option(o, "port");
    const char *timeout = option(o, "connect_timeout");
    size_t count = elements(hostaddr);

    if (count == 0)
        count = elements(host);
    if (count > NAMES_MAX) {
        snprintf(why, n, "it names more than %d hosts", NAMES_MAX);
        return DAC_E_INVALID;
    }
    if ((host != NULL && elements(host) != count) ||
        (elements(port) > 1 && elements(port) != count && count > 0)) {
        snprintf(why, n, "it has lists of hosts, addresses and ports of unequal length");
        return DAC_E_INVALID;
    }
    if (timeout != NULL && atoi(timeout) > 0)
        h->timeout_s = (unsigned)atoi(timeout);
    for (; h->count < count; h->count++) {
        struct name *m = &h->names[h->count];

        m->host = element(host, h->count, false);
        m->hostaddr = element(hostaddr, h->count, false);
        m->port = element(port, h->count, true);
        if (m->host == NULL || m->hostaddr == NULL || m->port == NULL) {
            h->count++; /* so that all of it is freed */
            return DAC_E_NOMEM;
        }
    }
    return DAC_OK;
}

enum dac_err postgres_hosts_new(struct event_base *base, const char *conninfo,
                                struct postgres_hosts **out, char *why, size_t n)
{
    /* With a password at hand it looks for no other one. */
    static const char *const keywords[] = {"dbname", "password", "channel_binding", NULL};
    const char *values[] = {conninfo, "x", "none, this is a question", NULL};
    struct postgres_hosts *h = calloc(1, sizeof(*h));
    char *complaint = NULL;
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    *out = NULL;
    if (h == NULL)
        return e;
    h->base = base;
    for (size_t i = 0; i < DAC_ARRAY_LEN(h->list); i++)
        h->list[i] = BUF_INIT(LISTS_MAX);
    /* Its complaints are about the string alone; those of a connection also about what
     * was put in above. */
    PQconninfoOption *parsed = PQconninfoParse(conninfo, &complaint);

    if (parsed == NULL) {
        postgres_hosts_blank(complaint != NULL ? complaint : "out of memory", why, n);
        PQfreemem(complaint);
        free(h);
        return DAC_E_INVALID;
    }
    PQconninfoFree(parsed);
    PGconn *pg = PQconnectStartParams(keywords, values, 1);
    PQconninfoOption *o = pg != NULL ? PQconninfo(pg) : NULL;

    if (o != NULL) {
        h->passfile = passfile_of(o);
        e = read_names(h, o, why, n);
    }
    PQconninfoFree(o);
    PQfinish(pg);
    if (e != DAC_OK) {
        postgres_hosts_free(h);
        return e;
    }
    *out = h;
    return DAC_OK;
}

/* --- the thread --------------------------------------------------------------------- */

static void job_release(struct job *j)
{
    if (atomic_fetch_sub(&j->holders, 1) != 1)
        return;
    for (size_t i = 0; i < j->count; i++)
        free(j->host[i]);
    close(j->fd);
    free(j);
}

static void look_up(struct job *j, size_t i)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    size_t n = 0;
    int rc = getaddrinfo(j->host[i], NULL, &hints, &list);

    if (rc != 0) {
        snprintf(j->why, sizeof(j->why), "could not resolve host name \"%s\": %s",
                 j->host[i], gai_strerror(rc));
        return;
    }
    for (const struct addrinfo *a = list; a != NULL && n < PER_NAME_MAX; a = a->ai_next) {
        struct address *to = &j->found[j->found_count];

        to->name = i;
        if (getnameinfo(a->ai_addr, a->ai_addrlen, to->text, sizeof(to->text), NULL, 0,
                        NI_NUMERICHOST) == 0) {
            j->found_count++;
            n++;
        }
    }
    freeaddrinfo(list);
}

static void *run_job(void *arg)
{
    struct job *j = arg;

    for (size_t i = 0; i < j->count; i++) {
        if (j->host[i] != NULL)
            look_up(j, i);
        else
            j->found[j->found_count++] = (struct address){.name = i};
    }
    (void)eventfd_write(j->fd, 1);
    job_release(j);
    return NULL;
}

static bool needs_look_up(const struct name *m)
{
    unsigned char binary[sizeof(struct in6_addr)];

    return m->hostaddr[0] == '\0' && m->host[0] != '\0' && m->host[0] != '/' &&
           m->host[0] != '@' && inet_pton(AF_INET, m->host, binary) != 1 &&
           inet_pton(AF_INET6, m->host, binary) != 1;
}

static struct job *job_new(const struct postgres_hosts *h)
{
    struct job *j = calloc(1, sizeof(*j));

    if (j == NULL)
        return NULL;
    atomic_init(&j->holders, 1);
    j->count = h->count;
    j->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool ok = j->fd >= 0;

    for (size_t i = 0; ok && i < h->count; i++) {
        if (!needs_look_up(&h->names[i]))
            continue;
        j->host[i] = strdup(h->names[i].host);
        ok = j->host[i] != NULL;
    }
    if (ok)
        return j;
    job_release(j);
    return NULL;
}

/* Its own holder is counted before it starts. All signals stay with the loop's thread. */
static bool start_thread(struct job *j)
{
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_t thread;

    if (pthread_attr_init(&attr) != 0)
        return false;
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    atomic_fetch_add(&j->holders, 1);
    int rc = pthread_create(&thread, &attr, run_job, j);

    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (rc != 0)
        job_release(j);
    return rc == 0;
}

/* --- asking it ---------------------------------------------------------------------- */

static void answer(struct postgres_hosts *h, const char *why)
{
    postgres_hosts_cb cb = h->cb;

    h->cb = NULL;
    if (cb != NULL)
        cb(h->arg, why);
}

static void forget_job(struct postgres_hosts *h)
{
    if (h->done != NULL)
        event_free(h->done);
    h->done = NULL;
    if (h->job != NULL)
        job_release(h->job);
    h->job = NULL;
}

static void on_done(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_hosts *h = arg;
    char why[sizeof(h->job->why)] = "";

    (void)fd;
    (void)what;
    if (h->job->found_count > 0) {
        h->address_count = h->job->found_count;
        memcpy(h->addresses, h->job->found, sizeof(h->addresses));
    } else if (h->address_count == 0) {
        memcpy(why, h->job->why, sizeof(why));
    }
    forget_job(h);
    answer(h, why[0] != '\0' ? why : NULL);
}

static void on_later(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    answer(arg, NULL);
}

/* Where nothing is a name the addresses are those of the string. */
static bool known_already(struct postgres_hosts *h)
{
    for (size_t i = 0; i < h->count; i++) {
        if (needs_look_up(&h->names[i]))
            return false;
        h->addresses[i] = (struct address){.name = i};
    }
    h->address_count = h->count;
    return true;
}

void postgres_hosts_resolve(struct postgres_hosts *h, postgres_hosts_cb cb, void *arg)
{
    h->cb = cb;
    h->arg = arg;
    if (h->later == NULL)
        h->later = event_new(h->base, -1, 0, on_later, h);
    if (h->later == NULL) {
        answer(h, "out of memory"); /* the one case in which it comes at once */
        return;
    }
    if (known_already(h)) {
        event_active(h->later, EV_TIMEOUT, 0);
        return;
    }
    if (h->job != NULL)
        return;
    h->job = job_new(h);
    if (h->job != NULL)
        h->done = event_new(h->base, h->job->fd, EV_READ, on_done, h);
    if (h->done == NULL || event_add(h->done, NULL) != 0 || !start_thread(h->job)) {
        forget_job(h);
        answer(h, "could not start a thread that resolves host names");
    }
}

void postgres_hosts_stop(struct postgres_hosts *h)
{
    h->cb = NULL;
    if (h->later != NULL)
        event_del(h->later);
}

void postgres_hosts_free(struct postgres_hosts *h)
{
    if (h == NULL)
        return;
    forget_job(h);
    if (h->later != NULL)
        event_free(h->later);
    for (size_t i = 0; i < h->count; i++) {
        free(h->names[i].host);
        free(h->names[i].hostaddr);
        free(h->names[i].port);
    }
    for (size_t i = 0; i < DAC_ARRAY_LEN(h->list); i++)
        buf_free(&h->list[i]);
    free(h->passfile);
    free(h);
}

/* --- lists for libpq ---------------------------------------------------------------- */

size_t postgres_hosts_count(const struct postgres_hosts *h)
{
    return h->address_count;
}

unsigned postgres_hosts_timeout_s(const struct postgres_hosts *h)
{
    return h->timeout_s;
}

bool postgres_hosts_lists(struct postgres_hosts *h, size_t first,
                          struct postgres_host_lists *out)
{
    *out = (struct postgres_host_lists){NULL, NULL, NULL};
    if (h->address_count == 0)
        return true;
    for (size_t i = 0; i < DAC_ARRAY_LEN(h->list); i++)
        buf_reset(&h->list[i]);
    for (size_t i = 0; i < h->address_count; i++) {
        const struct address *a = &h->addresses[(first + i) % h->address_count];
        const struct name *m = &h->names[a->name];
        const char *sep = i > 0 ? "," : "";

        (void)buf_printf(&h->list[0], "%s%s", sep, m->host);
        (void)buf_printf(&h->list[1], "%s%s", sep,
                         a->text[0] != '\0' ? a->text : m->hostaddr);
        (void)buf_printf(&h->list[2], "%s%s", sep, m->port);
    }
    out->host = buf_cstr(&h->list[0]);
    out->hostaddr = buf_cstr(&h->list[1]);
    out->port = buf_cstr(&h->list[2]);
    return out->host != NULL && out->hostaddr != NULL && out->port != NULL &&
           !h->list[0].failed && !h->list[1].failed && !h->list[2].failed;
}
