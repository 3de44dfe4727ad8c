/*
 * A turn as the store has it, told in any dialect: what a client hears that comes to a
 * finished turn after that has left memory. Worker, event loop thread only.
 */
#ifndef DAC_FLIGHT_REPLAY_H
#define DAC_FLIGHT_REPLAY_H

#include "flight/ask.h"
#include "store/store.h"

struct replay {
    const struct dialect *dialect;
    const struct store_turn *turn;
    const char *cache_status;       /* value of that header; NULL: none */
    const struct resume_from *from; /* of a stream that goes on; NULL: the whole */
    bool include_usage;
};

/* Whether `from` is behind the end of the text that it would go on with. */
bool replay_is_beyond(const struct store_turn *t, const struct resume_from *from);
/* Answers the exchange and ends it. Not for a turn that failed, unless as a stream. */
void replay_turn(struct http_exchange *ex, const struct replay *rp);

#endif
