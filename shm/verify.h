/*
 * Looking at a whole segment from outside: every *_valid(), what they leave to who sees
 * all of it, and what should have been given back by now.
 *
 * On a segment where processes are at work, rules over several words may be broken for
 * the moment in which somebody is between two steps. Such a finding says so (`certain` is
 * false), and means something only if it is there again, in the same words, in later
 * passes.
 *
 * Reads only, takes no lock, calls nobody but `fn`, survives any content of a segment
 * whose header segment_valid() accepts. Any process.
 */
#ifndef DAC_SHM_VERIFY_H
#define DAC_SHM_VERIFY_H

#include "shm/segment.h"
#include "shm/slot.h"

#define VERIFY_NO_INDEX UINT32_MAX
/* An orphan is ended this long after reconnect_grace, an ended flight stored this long
 * after its end; later than that is late. */
#define VERIFY_ORPHAN_SLACK_NS (UINT64_C(10) * 1000000000)
#define VERIFY_STORE_SLACK_NS  (UINT64_C(30) * 1000000000)

struct verify_finding {
    const char *object; /* "flight"; a literal */
    uint32_t index;     /* which one, VERIFY_NO_INDEX: there is one only */
    uint64_t use;       /* tells two uses of the same flight apart */
    bool certain;       /* one load decided it */
    bool note;          /* worth knowing, but not wrong */
    char words[200];
};

typedef void verify_fn(void *ctx, const struct verify_finding *finding);

struct verify_view {
    const struct shm *shm;
    bool live;       /* processes are at work: ages are judged, held buckets are not */
    bool master;     /* somebody sweeps and counts */
    uint64_t now_ns; /* of a live segment */
};

/* One pass over everything but the header's sizes (segment_valid). */
void verify_pass(const struct verify_view *view, verify_fn *fn, void *ctx);

/* What the death of all left to be done. */
struct verify_remains {
    uint32_t processes, flights, permits, locks;
};

/* Does in a private copy of a dead segment what the master and the next holders of the
 * locks would have done: sweeps each slot, rebuilds chains whose lock was held. What is
 * wrong after that no death explains. */
struct verify_remains verify_settle(struct shm *copy);

#endif
