/*
 * See postgres_fixture.h.
 */
#include "postgres_fixture.h"

#include <arpa/inet.h>
#include <check.h>
#include <dirent.h>
#include <glob.h>
#include <limits.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

char px_dir[64];
int px_port;
char px_conninfo[256];

static char bin[256];
static uid_t uid;
static gid_t gid;
static pid_t owner; /* the process that started it, and alone may remove it */

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

static bool find_programs(void)
{
    glob_t g;

    if (glob("/usr/lib/postgresql/*/bin/initdb", 0, NULL, &g) != 0)
        return false;
    snprintf(bin, sizeof(bin), "%s", g.gl_pathv[g.gl_pathc - 1]);
    *strrchr(bin, '/') = '\0';
    globfree(&g);
    return true;
}

/* The server refuses to be run by root. */
static void choose_user(void)
{
    const struct passwd *pw;

    uid = geteuid();
    gid = getegid();
    if (uid != 0)
        return;
    pw = getpwnam("postgres");
    if (pw == NULL)
        die("there is no user \"postgres\" to run a server as");
    uid = pw->pw_uid;
    gid = pw->pw_gid;
}

static int run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A shell command as the server's user; its exit status. */
static int run(const char *fmt, ...)
{
    char command[1024];
    int status;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    pid_t pid = fork();

    if (pid == 0) {
        if (geteuid() == 0 && (setgid(gid) != 0 || setuid(uid) != 0))
            _exit(126);
        if (chdir("/") != 0)
            _exit(126);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    while (waitpid(pid, &status, 0) < 0)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&a, n) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) != 0)
        die("no port is to be had");
    close(fd);
    return ntohs(a.sin_port);
}

void px_start(void)
{
    if (run("'%s/pg_ctl' -D %s/data -s -w -t 60 -l %s/log start", bin, px_dir, px_dir) !=
        0) {
        (void)run("tail -20 %s/log", px_dir);
        die("the PostgreSQL server did not start");
    }
}

void px_stop(const char *mode)
{
    (void)run("'%s/pg_ctl' -D %s/data -s -w -t 60 -m %s stop", bin, px_dir, mode);
}

/* INT_MAX if it does not run. */
static pid_t postmaster(void)
{
    char path[128];
    long pid = 0;

    snprintf(path, sizeof(path), "%s/data/postmaster.pid", px_dir);
    FILE *f = fopen(path, "r");

    if (f == NULL || fscanf(f, "%ld", &pid) != 1)
        pid = 0;
    if (f != NULL)
        fclose(f);
    return pid > 0 ? (pid_t)pid : INT_MAX;
}

void px_signal_all(int sig)
{
    char path[64];
    long child;
    pid_t pid = postmaster();

    ck_assert_int_lt(pid, INT_MAX);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
    FILE *f = fopen(path, "r");

    ck_assert_ptr_nonnull(f);
    kill(pid, sig);
    while (fscanf(f, "%ld", &child) == 1)
        kill((pid_t)child, sig);
    fclose(f);
}

bool px_init(void)
{
    if (!find_programs()) {
        fprintf(stderr,
                "*** PostgreSQL is not installed: NOTHING OF THIS PROGRAM IS TESTED "
                "(tools/install-deps.sh check installs it) ***\n");
        return false;
    }
    choose_user();
    snprintf(px_dir, sizeof(px_dir), "/tmp/dac-pg-XXXXXX");
    if (mkdtemp(px_dir) == NULL || chown(px_dir, uid, gid) != 0 ||
        chmod(px_dir, 0755) != 0)
        die("no folder for the PostgreSQL server");
    px_port = free_port();
    owner = getpid();
    if (run("'%s/initdb' -D %s/data -U postgres -A trust -E UTF8 --locale=C.UTF-8 "
            "--no-sync --no-instructions >%s/initdb.log 2>&1",
            bin, px_dir, px_dir) != 0)
        die("initdb failed, see %s/initdb.log", px_dir);
    if (run("printf \"port = %d\\nlisten_addresses = '127.0.0.1'\\n"
            "unix_socket_directories = '%s'\\nfsync = off\\nshared_buffers = 32MB\\n"
            "max_connections = 30\\nlog_min_messages = warning\\n\" "
            ">>%s/data/postgresql.conf",
            px_port, px_dir, px_dir) != 0)
        die("the server's settings could not be written");
    if (run("sed -i '1i host all with_password 127.0.0.1/32 scram-sha-256' "
            "%s/data/pg_hba.conf",
            px_dir) != 0)
        die("the server's pg_hba.conf could not be written");
    px_start();
    return true;
}

void px_exit(void)
{
    if (owner != getpid())
        return;
    if (kill(postmaster(), 0) == 0)
        px_stop("immediate");
    (void)run("rm -rf %s/*", px_dir);
    rmdir(px_dir);
}

/* --- a line to it ------------------------------------------------------------------- */

static pid_t relay_pid;

/* Copies what there is; false at the end of the connection. */
static bool copy(int from, int to, size_t max, size_t *bytes)
{
    char buf[65536];
    ssize_t n = read(from, buf, max < sizeof(buf) ? max : sizeof(buf));

    *bytes += n > 0 ? (size_t)n : 0;
    return n > 0 && send(to, buf, (size_t)n, MSG_NOSIGNAL) == n;
}

static void relay(int client, size_t limit, size_t bytes_per_s)
{
    const struct sockaddr_in a = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)px_port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct pollfd p[] = {{.fd = client, .events = POLLIN}, {.events = POLLIN}};
    size_t chunk = bytes_per_s == 0 ? SIZE_MAX : bytes_per_s / 100;
    size_t taken = 0, given = 0;
    bool ok = connect(server, (const struct sockaddr *)&a, sizeof(a)) == 0;

    p[1].fd = server;
    while (ok && taken < limit && poll(p, 2, -1) > 0) {
        if (bytes_per_s != 0 && p[0].revents != 0)
            usleep(10000);
        ok = (p[0].revents == 0 || copy(client, server, chunk, &taken)) &&
             (p[1].revents == 0 || copy(server, client, SIZE_MAX, &given));
    }
    usleep(300000);
    shutdown(client, SHUT_WR);
    usleep(100000);
    close(client);
    close(server);
}

int px_relay_start(size_t limit, size_t bytes_per_s)
{
    const int size = 65536; /* what waits in the line is nowhere */
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (bytes_per_s != 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, n) != 0 || listen(fd, 8) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) != 0)
        die("no port is to be had");
    relay_pid = fork();
    if (relay_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            relay(accept(fd, NULL, NULL), limit, bytes_per_s);
    }
    close(fd);
    return ntohs(a.sin_port);
}

void px_relay_stop(void)
{
    kill(relay_pid, SIGKILL);
    waitpid(relay_pid, NULL, 0);
}

/* --- databases ---------------------------------------------------------------------- */

static PGconn *connect_to(const char *database)
{
    char conninfo[256];

    snprintf(conninfo, sizeof(conninfo), "host=%s port=%d user=postgres dbname=%s",
             px_dir, px_port, database);
    PGconn *pg = PQconnectdb(conninfo);

    ck_assert_msg(PQstatus(pg) == CONNECTION_OK, "%s", PQerrorMessage(pg));
    return pg;
}

static PGresult *query(PGconn *pg, const char *sql)
{
    PGresult *res = PQexec(pg, sql);
    ExecStatusType s = PQresultStatus(res);

    ck_assert_msg(s == PGRES_TUPLES_OK || s == PGRES_COMMAND_OK, "%s: %s", sql,
                  PQerrorMessage(pg));
    return res;
}

static char database[32];

void px_setup(void)
{
    char sql[128];

    if (kill(postmaster(), 0) != 0) /* the test before had stopped it */
        px_start();
    PGconn *pg = connect_to("postgres");

    snprintf(database, sizeof(database), "t%d", (int)getpid());
    snprintf(px_conninfo, sizeof(px_conninfo), "host=%s port=%d user=postgres dbname=%s",
             px_dir, px_port, database);
    snprintf(sql, sizeof(sql), "CREATE DATABASE %s", database);
    PQclear(query(pg, sql));
    PQfinish(pg);
}

void px_teardown(void)
{
    char sql[128];
    PGconn *pg = connect_to("postgres");

    snprintf(sql, sizeof(sql), "DROP DATABASE IF EXISTS %s WITH (FORCE)", database);
    PQclear(query(pg, sql));
    PQfinish(pg);
}

PGconn *px_connect(void)
{
    return connect_to(database);
}

const char *px_text(const char *sql)
{
    static char text[512];
    PGconn *pg = px_connect();
    PGresult *res = query(pg, sql);

    text[0] = '\0';
    if (PQntuples(res) > 0)
        snprintf(text, sizeof(text), "%s", PQgetvalue(res, 0, 0));
    PQclear(res);
    PQfinish(pg);
    return text;
}

long long px_int(const char *sql)
{
    return atoll(px_text(sql));
}

void px_exec(const char *sql)
{
    (void)px_text(sql);
}
