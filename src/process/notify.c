/*
 * One datagram to the socket in NOTIFY_SOCKET, a path or an abstract name that starts
 * with
 * "@". Sent without waiting: a supervisor that does not read must not stop the master.
 * The master runs this; children never speak to systemd.
 */
#include "process/notify.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"

/* Once: there is a message every few seconds. */
static void complain(int err, const char *what)
{
    static bool said;

    if (!said)
        log_warn(err, "could not notify systemd: %s", what);
    said = true;
}

void notify_send(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t len;
    int fd;

    if (!path || !path[0])
        return;
    len = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || len >= sizeof(addr.sun_path)) {
        complain(0, "NOTIFY_SOCKET is not a usable address");
        return;
    }
    memcpy(addr.sun_path, path, len);
    if (path[0] == '@')
        addr.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        complain(errno, "no socket");
        return;
    }
    if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&addr,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
        complain(errno, path);
    close(fd);
}
