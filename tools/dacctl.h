/*
 * dacctl's commands. Each looks at an attached, read-only segment and appends what it has
 * to say to `out`: a table for people, or one JSON object with `json`; `name` is the
 * file's in /dev/shm. They return what to exit with, and never show what was asked or
 * answered.
 */
#ifndef DAC_TOOLS_DACCTL_H
#define DAC_TOOLS_DACCTL_H

#include <stdbool.h>

#include "base/bytes.h"
#include "shm/segment.h"

int dacctl_status(struct shm *shm, const char *name, bool json, struct buf *out);
int dacctl_counters(struct shm *shm, const char *name, bool json, struct buf *out);
int dacctl_pacer(struct shm *shm, const char *name, bool json, struct buf *out);
int dacctl_flights(struct shm *shm, const char *name, bool json, struct buf *out);
/* Puts a copy in the place of a dead segment, and brings that to rest. */
int dacctl_check(struct shm *shm, const char *name, bool json, struct buf *out);

/* Until whoever reads has gone, or the master has. They print by themselves; `out` is for
 * them to use. `word`: "tail". */
int dacctl_top(struct shm *shm, const char *name, bool json, struct buf *out);
int dacctl_turns(struct shm *shm, const char *word, bool json, struct buf *out);
/* Asked of the master; `word` is what stands behind the command. */
int dacctl_reload(struct shm *shm, const char *word, bool json, struct buf *out);
int dacctl_drain(struct shm *shm, const char *word, bool json, struct buf *out);
int dacctl_running_config(struct shm *shm, const char *word, bool json, struct buf *out);
int dacctl_cancel(struct shm *shm, const char *word, bool json, struct buf *out);

/* Parts of these screens. How many problems there are; one line each. */
size_t dacctl_text_problems(const struct shm *shm, struct buf *out);
void dacctl_json_problems(const struct shm *shm, struct buf *out);
void dacctl_text_overview(const struct shm *shm, struct buf *out);
/* Whether its master is there, as far as one may know. */
bool dacctl_master_alive(const struct shm *shm);
/* A pacer's limit in calls a second, 0: none; seconds for which it is paused yet. */
double dacctl_rps(const struct shm_pacer *p);
double dacctl_paused_s(const struct shm_pacer *p);
/* Why a provider is paused; static text. */
const char *dacctl_pause_reason(const struct shm_pacer *p);

#endif
