/*
 * Moves the write-ahead log of an SQLite database into its file, in a thread with a
 * connection of its own, so that nobody who waits for a commit waits for that as well.
 * Commits go on meanwhile; the log starts over once all of it has been moved and somebody
 * writes.
 *
 * The thread is made at the first run. It does nothing but this, takes no signal and
 * touches nothing of its owner's. One owner, which has the database open for longer than
 * this lives. Runs in the recorder.
 */
#ifndef DAC_STORE_SQLITE_CHECKPOINT_H
#define DAC_STORE_SQLITE_CHECKPOINT_H

#include <stdbool.h>

struct sqlite_checkpoint;

/* NULL: no memory. */
struct sqlite_checkpoint *sqlite_checkpoint_new(const char *path);
/* Begins a run, unless there is one. False: it cannot be had (no thread). What cannot be
 * moved now, because of a reader, is moved by a later run; failures are for the owner's
 * next commit to find. */
bool sqlite_checkpoint_begin(struct sqlite_checkpoint *c);
/* Waits for the run that there is. */
void sqlite_checkpoint_wait(struct sqlite_checkpoint *c);
/* Waits, too. NULL is allowed. */
void sqlite_checkpoint_free(struct sqlite_checkpoint *c);

#endif
