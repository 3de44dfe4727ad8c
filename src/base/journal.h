/*
 * Entries of systemd's journal with fields of their own, by its native protocol: one
 * datagram an entry, to a socket that every process may send to
 * (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/). For log.c, which has another way for
 * what does not arrive.
 *
 * No libsystemd: it would be one more library, with half a dozen behind it, in every
 * worker, for one sendmsg(). process/systemd.c does the same for the same reason.
 *
 * The socket is not connected and has no state, so a process and those that it forks
 * share one; the kernel tells the journal for each datagram who sent it. It closes on
 * exec. Sending never blocks. One thread at a time.
 */
#ifndef DAC_BASE_JOURNAL_H
#define DAC_BASE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>

#define JOURNAL_SOCKET    "/run/systemd/journal/socket"
#define JOURNAL_ENTRY_MAX 8192
#define JOURNAL_FLUSH_MS  100

struct journal_entry {
    size_t len;
    bool failed; /* a field had no room */
    char data[JOURNAL_ENTRY_MAX];
};

/* If standard error is the journal's, which JOURNAL_STREAM tells by device and inode:
 * opens a socket for entries to the one at `path` (JOURNAL_SOCKET; tests have their own),
 * for this process and those it forks. Whether it has. Before the first fork. */
bool journal_open(const char *path);
bool journal_is_open(void);
void journal_close(void);
void journal_begin(struct journal_entry *e);
/* Appends a field. `name` is [A-Z0-9_]+ and begins with a letter; the value is any
 * bytes. */
void journal_put(struct journal_entry *e, const char *name, const char *value, size_t n);
/* Whether the journal has taken it. If not (it is not there, it has too much to do, the
 * entry is too large for it), the caller has to tell it in another way. Keeps errno. */
bool journal_send(const struct journal_entry *e);
/* Waits until the journal has read what was sent, JOURNAL_FLUSH_MS at most. It learns
 * whose an entry is when it reads it, and of a process that is gone it does not learn the
 * unit: `journalctl -u` would not show its last words. For the end of a process. */
void journal_flush(void);

#endif
