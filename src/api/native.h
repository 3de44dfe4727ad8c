/*
 * The native dialects: server-sent events for streams, one JSON object for the rest.
 */
#ifndef DAC_API_NATIVE_H
#define DAC_API_NATIVE_H

#include "flight/dialect.h"

extern const struct dialect native_stream;
extern const struct dialect native_json;
extern const struct dialect native_cancel; /* answers {turn_id, status} */
extern const struct dialect native_thread; /* answers a thread's creation */

/* The answer object of a turn (see the API page), from memory. */
void native_put_turn(struct buf *b, const struct turn_view *v,
                     const struct turn_result *r, const char *coalesce);
/* Appends `ms` with microseconds, or null where it is negative. */
void native_put_ms(struct buf *b, double ms);
/* A `reset` event. */
void native_put_reset(struct buf *out, struct position at, const char *reason);
/* Whole answer of a JSON body; ends the exchange. */
void native_respond(struct http_exchange *ex, int status, struct buf *body);
/* "leader", "follower", "hit" */
const char *native_role(const struct member *m);

#endif
