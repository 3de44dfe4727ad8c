/*
 * See journal.h.
 */
#include "base/journal.h"

#include <endian.h>
#include <errno.h>
#include <linux/sockios.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int sock = -1;
static struct sockaddr_un address;

/* Others hand that variable down to what they start with another standard error. */
static bool is_stderr(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    char here[64];
    struct stat st;

    if (stream == NULL || fstat(STDERR_FILENO, &st) != 0)
        return false;
    snprintf(here, sizeof(here), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(here, stream) == 0;
}

bool journal_open(const char *path)
{
    journal_close();
    if (!is_stderr() || strlen(path) >= sizeof(address.sun_path))
        return false;
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path));
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return sock >= 0;
}

bool journal_is_open(void)
{
    return sock >= 0;
}

void journal_close(void)
{
    if (sock >= 0)
        close(sock);
    sock = -1;
}

void journal_begin(struct journal_entry *e)
{
    e->len = 0;
    e->failed = false;
}

/* NAME=value, or where that has lines of its own NAME, the number of bytes as 64 bits of
 * little endian, and the bytes. */
void journal_put(struct journal_entry *e, const char *name, const char *value, size_t n)
{
    const size_t name_len = strlen(name);
    uint64_t size = htole64(n);

    if (name_len + 1 + sizeof(size) + n + 1 > sizeof(e->data) - e->len) {
        e->failed = true;
        return;
    }
    memcpy(e->data + e->len, name, name_len);
    e->len += name_len;
    if (memchr(value, '\n', n) != NULL) {
        e->data[e->len++] = '\n';
        memcpy(e->data + e->len, &size, sizeof(size));
        e->len += sizeof(size);
    } else {
        e->data[e->len++] = '=';
    }
    memcpy(e->data + e->len, value, n);
    e->len += n;
    e->data[e->len++] = '\n';
}

bool journal_send(const struct journal_entry *e)
{
    int saved = errno;
    ssize_t n = -1;

    while (sock >= 0 && !e->failed) {
        n = sendto(sock, e->data, e->len, MSG_DONTWAIT | MSG_NOSIGNAL,
                   (const struct sockaddr *)&address, sizeof(address));
        if (n >= 0 || errno != EINTR)
            break;
    }
    errno = saved;
    return n >= 0;
}

void journal_flush(void)
{
    const struct timespec step = {.tv_nsec = 1000000};
    int unread = 0;

    for (int i = 0; i < JOURNAL_FLUSH_MS && sock >= 0; i++) {
        if (ioctl(sock, SIOCOUTQ, &unread) != 0 || unread == 0)
            return;
        nanosleep(&step, NULL);
    }
}
