/*
 * Wake-up: the data is in shared memory, the eventfd only says "look".
 *
 * Waker: sets the flight's bit in the sleeper's dirty bitmap, then exchanges `notified`
 * to 1 and writes the eventfd if it was 0. Sleeper: reads the eventfd, exchanges
 * `notified` to 0, then takes the dirty words. Both sides use read-modify-write, so
 * either the waker sees 0 and writes again, or the sleeper sees the bit. A waker that
 * dies between the steps is covered by the master's kick after each reap and by the
 * sleeper's 250 ms look.
 */
#ifndef DAC_SHM_WAKE_H
#define DAC_SHM_WAKE_H

#include "shm/flight.h"

/* Tells one slot that a flight changed. */
void wake_slot(struct shm *shm, uint32_t slot, uint32_t flight);
/* Tells every reader of a flight, but not this process. */
void wake_readers(struct shm *shm, uint32_t flight);
/* Tells the flight's owner, if it has one. */
void wake_owner(struct shm *shm, uint32_t flight);
/* Tells the recorder. */
void wake_recorder(struct shm *shm, uint32_t flight);
/* Tells a slot that permits of a provider came back. */
void wake_pacer(struct shm *shm, uint32_t slot, uint32_t provider);
/* Master: everyone looks at everything. */
void wake_kick(struct shm *shm);

/* Sleeper: drains its eventfd and clears `notified`; afterwards takes the bits. */
void wake_begin(struct shm *shm);
/* Takes the dirty flights: calls `fn` for each. */
void wake_take(struct shm *shm, void (*fn)(void *arg, uint32_t flight), void *arg);
/* Takes the bitmap of providers whose permits came back. */
uint32_t wake_take_pacers(struct shm *shm);

#endif
