/*
 * dacctl reload, drain and cancel: what changes something is asked of the master over its
 * socket (src/process/control.h), whose path is in the segment; what comes of it is seen
 * in the segment.
 */
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/json.h"
#include "dacctl.h"
#include "dacctl_exit.h"
#include "shm/index.h"

#define ANSWER_MAX     (256u << 10)
#define CONFIG_MAX     (4u << 20)
#define ANSWER_WAIT_NS (60 * NS_PER_S) /* a reload has half of it for its new workers */
#define CONNECT_WAIT_S 5
#define CANCEL_WAIT_NS (5 * NS_PER_S)
#define LOOK_NS        (20 * NS_PER_MS)
#define PROGRESS_NS    NS_PER_S

/* --- asking the master
 * ------------------------------------------------------------------ */

static int connect_to(const struct shm *shm)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    const struct timeval patience = {.tv_sec = CONNECT_WAIT_S};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    /* A stopped master's queue may be full of those who have given up. */
    if (fd >= 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%.*s", (int)sizeof(addr.sun_path) - 1,
             shm->hdr->control);
    if (addr.sun_path[0] == '\0') {
        fputs("dacctl: this instance has no control socket; set control in [server]\n",
              stderr);
    } else if (fd >= 0 &&
               connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0) {
        return fd;
    } else {
        fprintf(stderr, "dacctl: could not reach the master at %s: %s%s\n", addr.sun_path,
                strerror(errno),
                errno == EACCES   ? "; be root, or in the group of the service"
                : errno == EAGAIN ? "; it takes nobody, dacctl status may say why"
                                  : "");
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

/* The whole answer, until the master closes. */
static bool receive(int fd, struct buf *out)
{
    uint64_t until = clock_now_ns() + ANSWER_WAIT_NS;
    struct pollfd p = {.fd = fd, .events = POLLIN};

    for (;;) {
        uint64_t now = clock_now_ns();
        char *room = buf_reserve(out, 4096);
        ssize_t n;

        if (now >= until || !room || poll(&p, 1, (int)((until - now) / NS_PER_MS)) < 0)
            return false;
        if (p.revents == 0)
            continue;
        n = recv(fd, room, 4096, 0);
        if (n <= 0)
            return n == 0 && out->len > 0;
        out->len += (size_t)n;
    }
}

/* The answer as text and parsed; the caller puts the object and frees the text. NULL: it
 * has been said why. */
static struct json_object *ask(const struct shm *shm, const char *request,
                               struct buf *text)
{
    struct json_object *answer = NULL;
    struct json_error error;
    int fd = connect_to(shm);

    if (fd < 0)
        return NULL;
    if (dprintf(fd, "%s\n", request) < 0 || !receive(fd, text) ||
        json_parse_strict(text->data, text->len, &answer, &error) != DAC_OK)
        fputs("dacctl: the master does not answer; its log says more\n", stderr);
    close(fd);
    return answer;
}

static const char *member(struct json_object *o, const char *name)
{
    struct json_object *m = NULL;

    return json_object_object_get_ex(o, name, &m) ? json_object_get_string(m) : "";
}

static bool is_ok(struct json_object *o)
{
    return strcmp(member(o, "ok"), "true") == 0;
}

/* --- reload
 * ------------------------------------------------------------------------------ */

int dacctl_reload(struct shm *shm, const char *word, bool json, struct buf *out)
{
    struct buf text = BUF_INIT(ANSWER_MAX);
    struct json_object *answer = ask(shm, "reload", &text), *report = NULL;
    int rc = EXIT_UNUSABLE;

    (void)word;
    if (answer && json) {
        buf_append(out, text.data, text.len);
    } else if (answer && json_object_object_get_ex(answer, "report", &report)) {
        for (size_t i = 0; i < json_object_array_length(report); i++)
            buf_printf(out, "%s\n",
                       json_object_get_string(json_object_array_get_idx(report, i)));
    } else if (answer) {
        fprintf(stderr, "dacctl: %s\n", member(answer, "error"));
    }
    if (answer)
        rc = is_ok(answer) ? 0 : EXIT_NOT_DONE;
    json_object_put(answer);
    buf_free(&text);
    return rc;
}

/* --- config
 * ------------------------------------------------------------------------------ */

int dacctl_running_config(struct shm *shm, const char *word, bool json, struct buf *out)
{
    struct buf text = BUF_INIT(CONFIG_MAX);
    struct json_object *answer = ask(shm, "config", &text), *settings = NULL;
    int rc = answer ? EXIT_NOT_DONE : EXIT_UNUSABLE;

    (void)word;
    if (answer && json_object_object_get_ex(answer, "settings", &settings)) {
        rc = 0;
        if (json) {
            buf_puts(out, "{\"problems\":[]");
            json_put_member(out, "file", member(answer, "file"));
            buf_puts(out, ",\"settings\":");
            json_put_object(out, settings);
            buf_puts(out, "}\n");
        } else {
            buf_puts(out, member(answer, "text"));
        }
    } else if (answer) {
        fprintf(stderr, "dacctl: %s\n", member(answer, "error"));
    }
    json_object_put(answer);
    buf_free(&text);
    return rc;
}

/* --- drain
 * ------------------------------------------------------------------------------- */

static void rest(void)
{
    const struct timespec step = {.tv_nsec = LOOK_NS};

    nanosleep(&step, NULL);
}

/* Its last step is to remove the segment; if it was killed there is no process. */
static bool is_gone(const struct shm *shm)
{
    char path[sizeof("/dev/shm/") + SHM_NAME_SIZE];

    snprintf(path, sizeof(path), "/dev/shm/%.*s", SHM_NAME_SIZE, shm->hdr->name);
    return access(path, F_OK) != 0 || !dacctl_master_alive(shm);
}

static void show_progress(const struct shm *shm)
{
    uint64_t connections = 0, streams = 0;

    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        connections += atomic_load(&shm->slots[i].connections);
        streams += atomic_load(&shm->slots[i].streams);
    }
    fprintf(stderr, "%" PRIu64 " connections, %" PRIu64 " of them streams\n", connections,
            streams);
}

int dacctl_drain(struct shm *shm, const char *word, bool json, struct buf *out)
{
    struct buf text = BUF_INIT(ANSWER_MAX);
    uint64_t shown = clock_now_ns();
    struct json_object *answer;

    (void)word;
    if (is_gone(shm)) {
        fputs("dacctl: its master is gone already\n", stderr);
        return EXIT_UNUSABLE;
    }
    answer = ask(shm, "drain", &text);
    buf_free(&text);
    if (!answer)
        return EXIT_UNUSABLE;
    json_object_put(answer);
    while (!is_gone(shm)) {
        rest();
        if (clock_now_ns() - shown < PROGRESS_NS)
            continue;
        shown = clock_now_ns();
        show_progress(shm);
    }
    buf_puts(out, json ? "{\"ok\":true,\"stopped\":true}\n" : "stopped\n");
    return 0;
}

/* --- cancel
 * ------------------------------------------------------------------------------ */

static const char *state_name(enum flight_state state)
{
    switch (state) {
    case FLIGHT_DONE:
        return "complete";
    case FLIGHT_CANCELLED:
        return "cancelled";
    case FLIGHT_FAILED:
        return "failed";
    default:
        return "running";
    }
}

static int tell(const char *turn, const char *state, bool json, struct buf *out, int rc)
{
    if (json)
        buf_printf(out, "{\"ok\":%s,\"turn_id\":\"%s\",\"status\":\"%s\"}\n",
                   rc == 0 ? "true" : "false", turn, state);
    else
        buf_printf(out, "turn %s: %s\n", turn, state);
    return rc;
}

/* Not in this memory. While an instance moves to another one turns run on in the old one,
 * which the master knows, too. */
static int cancel_elsewhere(const struct shm *shm, const char *word, bool json,
                            struct buf *out)
{
    struct buf text = BUF_INIT(ANSWER_MAX);
    struct json_object *answer;
    char request[80];

    if (atomic_load(&shm->hdr->renewals) > 0) {
        snprintf(request, sizeof(request), "cancel %s", word);
        answer = ask(shm, request, &text);
        buf_free(&text);
        json_object_put(answer);
        if (answer)
            return tell(word, "asked, if it runs in the memory before this one", json,
                        out, EXIT_STILL_RUNS);
    }
    fprintf(stderr,
            "dacctl: turn %s is not in memory: it ended a while ago, or never was\n",
            word);
    return json ? tell(word, "not in memory", true, out, EXIT_NOT_DONE) : EXIT_NOT_DONE;
}

int dacctl_cancel(struct shm *shm, const char *word, bool json, struct buf *out)
{
    struct buf text = BUF_INIT(ANSWER_MAX);
    uint64_t until = clock_now_ns() + CANCEL_WAIT_NS;
    struct flight_word w = {0};
    struct json_object *answer;
    struct flight_ref ref;
    char request[80];
    struct id id;

    if (!id_parse(word, strlen(word), &id)) {
        fprintf(stderr, "dacctl: \"%s\" is no turn's id; dacctl flights shows them\n",
                word);
        return EXIT_UNUSABLE;
    }
    if (!index_find_turn(shm, id.b, &ref))
        return cancel_elsewhere(shm, word, json, out);
    w = flight_load(shm, ref.index);
    if (flight_state_ended(w.state))
        return tell(word, state_name(w.state), json, out, 0);
    snprintf(request, sizeof(request), "cancel %s", word);
    answer = ask(shm, request, &text);
    buf_free(&text);
    if (!answer)
        return EXIT_UNUSABLE;
    json_object_put(answer);
    while (w.incarnation == ref.incarnation && !flight_state_ended(w.state)) {
        if (clock_now_ns() > until)
            return tell(word, "running", json, out, EXIT_STILL_RUNS);
        rest();
        w = flight_load(shm, ref.index);
    }
    return tell(word, w.incarnation == ref.incarnation ? state_name(w.state) : "gone",
                json, out, 0);
}
