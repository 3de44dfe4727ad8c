/*
 * See control.h. Requests are so short that they come in one piece, and answers so short
 * that the kernel takes them whole, for which the socket's buffer grows where one is
 * long; if not, the connection is closed.
 */
#include "process/control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/json.h"
#include "base/log.h"
#include "config/describe.h"
#include "shm/live.h"
#include "shm/wake.h"

#define DEFAULT_FOLDER "/run/dac"
#define ASK_MAX_NS     (5 * NS_PER_S) /* for a request to arrive */
#define ANSWER_MAX     (64u << 10)
#define CONFIG_MAX     (4u << 20)
#define MODE           0660

/* --- the socket ------------------------------------------------------------------------
 */

static bool address_of(const char *path, struct sockaddr_un *out)
{
    memset(out, 0, sizeof(*out));
    out->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(out->sun_path)) {
        errno = ENAMETOOLONG;
        return false;
    }
    memcpy(out->sun_path, path, strlen(path));
    return true;
}

static enum dac_err make(struct control *c, const struct privileges *p)
{
    struct sockaddr_un addr;
    struct stat st;

    if (!address_of(c->path, &addr))
        return DAC_E_SYS;
    if (lstat(c->path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
        errno = EEXIST;
        return DAC_E_SYS;
    }
    if (listen_unix_answers(&addr)) {
        errno = EADDRINUSE;
        return DAC_E_SYS;
    }
    if (unlink(c->path) != 0 && errno != ENOENT)
        return DAC_E_SYS;
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        return DAC_E_SYS;
    /* Nobody gets in between bind() and chmod(): it does not listen yet. */
    if (bind(c->fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0 ||
        chmod(c->path, MODE) != 0 || (geteuid() == 0 && chown(c->path, 0, p->gid) != 0) ||
        lstat(c->path, &st) != 0 || listen(c->fd, CONTROL_CLIENTS) != 0)
        return DAC_E_SYS;
    c->dev = st.st_dev;
    c->ino = st.st_ino;
    return DAC_OK;
}

enum dac_err control_open(struct control *c, const struct config *cfg,
                          const struct privileges *p, char *why, size_t n)
{
    int saved;

    c->fd = -1;
    for (size_t i = 0; i < CONTROL_CLIENTS; i++)
        c->clients[i].fd = -1;
    if (cfg->control)
        snprintf(c->path, sizeof(c->path), "%s", cfg->control);
    else
        snprintf(c->path, sizeof(c->path), DEFAULT_FOLDER "/%s.sock", cfg->name);
    if (cfg->control && strlen(cfg->control) >= sizeof(c->path))
        errno = ENAMETOOLONG;
    else if (make(c, p) == DAC_OK)
        return DAC_OK;
    saved = errno;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    snprintf(why, n, "could not make the control socket %s: %s%s", c->path,
             strerror(saved),
             saved == EADDRINUSE ? "; another instance has it"
                                 : "; change control in "
                                   "[server]");
    c->path[0] = '\0';
    if (cfg->control)
        return DAC_E_SYS;
    log_info(0, "%s; dacctl reload, drain and cancel need it", why);
    return DAC_OK;
}

nfds_t control_fds(const struct control *c, struct pollfd *fds)
{
    nfds_t n = 0;
    bool room = false;

    for (size_t i = 0; i < CONTROL_CLIENTS; i++)
        room = room || c->clients[i].fd < 0;
    if (c->fd >= 0 && room && c->accept_at_ns == 0)
        fds[n++] = (struct pollfd){.fd = c->fd, .events = POLLIN};
    for (size_t i = 0; i < CONTROL_CLIENTS; i++)
        if (c->clients[i].fd >= 0)
            fds[n++] = (struct pollfd){.fd = c->clients[i].fd,
                                       .events = c->clients[i].reload == 0 ? POLLIN : 0};
    return n;
}

/* --- answers ---------------------------------------------------------------------------
 */

static void drop(struct control_client *x)
{
    close(x->fd);
    memset(x, 0, sizeof(*x));
    x->fd = -1;
}

static void answer(struct control_client *x, struct buf *b)
{
    int room;

    buf_puts(b, "\n");
    room = (int)(2 * b->len);
    if (b->len > ANSWER_MAX &&
        setsockopt(x->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)) != 0)
        log_debug(errno, "control: an answer is long");
    if (buf_cstr(b) &&
        send(x->fd, b->data, b->len, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)b->len)
        log_debug(errno, "control: an answer is lost");
    buf_free(b);
    drop(x);
}

static void answer_text(struct control_client *x, bool ok, const char *member,
                        const char *text)
{
    struct buf b = BUF_INIT(ANSWER_MAX);

    buf_printf(&b, "{\"ok\":%s,\"%s\":", ok ? "true" : "false", member);
    json_put_string(&b, text, strlen(text));
    buf_puts(&b, "}");
    answer(x, &b);
}

static void answer_reload(struct control_client *x, const struct reload *r)
{
    static const char *const outcomes[] = {[RELOAD_UNDER_WAY] = "under way",
                                           [RELOAD_DONE] = "done",
                                           [RELOAD_WAITS] = "waits",
                                           [RELOAD_REFUSED] = "refused"};
    struct buf b = BUF_INIT(2 * ANSWER_MAX);
    const char *line = r->report.data ? r->report.data : "";
    const char *end = line + r->report.len;

    buf_printf(&b, "{\"ok\":%s,\"outcome\":\"%s\",\"report\":[",
               r->outcome == RELOAD_REFUSED ? "false" : "true", outcomes[r->outcome]);
    while (line < end) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        size_t n = (size_t)((stop ? stop : end) - line);

        json_put_string(&b, line, n);
        line += n + 1;
        if (line < end)
            buf_puts(&b, ",");
    }
    buf_puts(&b, "]}");
    answer(x, &b);
}

/* Both for programs and for people, so that the latter look as those of a file do. */
static void answer_config(struct control_client *x, const struct config *cfg)
{
    struct buf b = BUF_INIT(CONFIG_MAX);
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    if (f) {
        config_print(cfg, f);
        if (fclose(f) != 0)
            n = 0;
    }
    buf_puts(&b, "{\"ok\":true");
    json_put_member(&b, "file", cfg->path);
    buf_puts(&b, ",\"settings\":");
    if (config_facts_json(cfg, &b) != DAC_OK || n == 0)
        b.failed = true;
    json_put_member(&b, "text", text);
    buf_puts(&b, "}");
    free(text);
    answer(x, &b);
}

/* --- requests --------------------------------------------------------------------------
 */

static void cancel(struct control *c, struct control_client *x, const char *text)
{
    struct id id;

    if (!id_parse(text, strlen(text), &id)) {
        answer_text(x, false, "error", "cancel needs the id of a turn");
        return;
    }
    FOR_EACH_GENERATION(g, c->gens)
    {
        live_ask_cancel(&g->shm, id.b);
        wake_kick(&g->shm);
    }
    log_info(0, "control: asked to cancel turn %s", text);
    answer_text(x, true, "asked", text);
}

static void handle(struct control *c, struct control_client *x)
{
    log_debug(0, "control: %s", x->line);
    if (strcmp(x->line, "reload") == 0 && c->reload->stopped) {
        answer_text(x, false, "error", "the service stops");
    } else if (strcmp(x->line, "reload") == 0) {
        log_info(0, "control: asked to reload");
        reload_ask(c->reload);
        /* One that is under way has begun with what was there before. */
        x->reload = c->reload->number + 1;
    } else if (strcmp(x->line, "drain") == 0) {
        log_info(0, "control: asked to drain");
        c->drain_asked = true;
        answer_text(x, true, "asked", "drain");
    } else if (strncmp(x->line, "cancel ", 7) == 0) {
        cancel(c, x, x->line + 7);
    } else if (strcmp(x->line, "config") == 0) {
        answer_config(x, c->reload->now->config);
    } else {
        answer_text(x, false, "error",
                    "unknown request; there are reload, drain, config and cancel TURN");
    }
}

/* Of one who waits for a reload's end. */
static void look_whether_gone(struct control_client *x)
{
    char byte;
    ssize_t n = recv(x->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        drop(x);
}

static void read_request(struct control *c, struct control_client *x)
{
    ssize_t n = recv(x->fd, x->line + x->len, sizeof(x->line) - 1 - x->len, MSG_DONTWAIT);
    char *end;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(x);
        return;
    }
    x->len += (size_t)n;
    x->line[x->len] = '\0';
    end = strchr(x->line, '\n');
    if (end) {
        *end = '\0';
        handle(c, x);
    } else if (x->len == sizeof(x->line) - 1) {
        drop(x);
    }
}

static void accept_some(struct control *c, uint64_t now_ns)
{
    struct sockaddr_un peer;
    socklen_t len = sizeof(peer);

    for (size_t i = 0; i < CONTROL_CLIENTS; i++) {
        struct control_client *x = &c->clients[i];

        if (x->fd >= 0)
            continue;
        x->fd =
            accept4(c->fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (x->fd < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                c->accept_at_ns = now_ns + NS_PER_S;
            return;
        }
        x->since_ns = now_ns;
    }
}

void control_step(struct control *c, uint64_t now_ns)
{
    if (now_ns >= c->accept_at_ns)
        c->accept_at_ns = 0;
    if (c->fd >= 0 && c->accept_at_ns == 0)
        accept_some(c, now_ns);
    for (size_t i = 0; i < CONTROL_CLIENTS; i++) {
        struct control_client *x = &c->clients[i];

        if (x->fd < 0)
            continue;
        if (x->reload == 0)
            read_request(c, x);
        else if (c->reload->number >= x->reload && c->reload->outcome != RELOAD_UNDER_WAY)
            answer_reload(x, c->reload);
        else
            look_whether_gone(x);
        if (x->fd >= 0 && x->reload == 0 && now_ns - x->since_ns > ASK_MAX_NS)
            drop(x);
    }
}

/* --- the end ---------------------------------------------------------------------------
 */

void control_forget(struct control *c)
{
    for (size_t i = 0; i < CONTROL_CLIENTS; i++)
        if (c->clients[i].fd >= 0)
            drop(&c->clients[i]);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

void control_close(struct control *c)
{
    struct stat st;

    if (c->path[0] && lstat(c->path, &st) == 0 && st.st_dev == c->dev &&
        st.st_ino == c->ino)
        unlink(c->path);
    c->path[0] = '\0';
    control_forget(c);
}
