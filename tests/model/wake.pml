/*
 * The wake-up: no sleeper stays deaf.
 *
 * Mirrors shm/wake.c: wake_readers (Owner), wake_slot and ring (WAKE), wake_begin and
 * wake_take (Sleeper), wake_kick (Master); shm/index.c: set_reader and the first look of a
 * joiner (Sleeper, before its loop); the look at everything on a kick and every 250 ms in
 * src/flight/flights.c (on_wake, flights_tick) and src/process/recorder.c.
 *
 * Flight 0 has an owner that publishes `tail` for its readers, flight 1 somebody who asks
 * for something; their dirty bits lie in different words. A store of `tail` waits in a store
 * buffer until it is flushed; read-modify-writes and fences empty the buffer first. A waker
 * may die between any two steps, twice in a run; the master reaps and kicks.
 *
 * Holds: whenever nothing can move any more, the sleeper has seen all there is.
 * With -DSTALL wakers stop for good instead of dying, nobody kicks, and the 250 ms look is
 * there: what was published is seen at last (under weak fairness).
 *
 * Broken on purpose:
 *   BROKEN_NO_FENCE       the publisher looks at the bitmap before its tail is out
 *   BROKEN_NO_JOIN_FENCE  the joiner looks at the tail before its bit is out
 *   BROKEN_TAKE_FIRST     dirty words are taken before `notified` is cleared
 *   BROKEN_READ_LAST      the eventfd is read after `notified` was cleared
 *   BROKEN_FLAG_FIRST     the waker sets `notified` before the dirty bit
 *   BROKEN_NO_KICK        the master does not kick after a reap
 *   BROKEN_POLITE_KICK    the kick writes only where `notified` is 0
 *   BROKEN_NO_LOOK        (STALL) no look every 250 ms
 */
#define PUBLISHES 2
#define ASKS      2
#ifdef STALL
#define DEATHS 1
#else
#define DEATHS 2
#endif

byte tail, buffered; /* of flight 0: in memory, and in its owner's store buffer */
bool pending;
byte asked;          /* of flight 1 */
bool reader;
bool dirty[2];
bool notified, eventfd;
byte kicks;
byte seen[2];        /* by the sleeper */
byte deaths, unreaped;

#define MAY_DIE                                                                             \
    if                                                                                      \
    :: deaths < DEATHS -> deaths++; goto died                                               \
    :: skip                                                                                 \
    fi
#define FLUSHED (!pending)

/* wake_slot and ring; `mine` is true for the process with the store buffer. */
inline wake(flight, mine)
{
#ifdef BROKEN_FLAG_FIRST
    atomic { (!mine || FLUSHED) -> MAY_DIE; was = notified; notified = true }
    atomic { MAY_DIE; dirty[flight] = true }
#else
    atomic { (!mine || FLUSHED) -> MAY_DIE; dirty[flight] = true }
    atomic { MAY_DIE; was = notified; notified = true }
#endif
    if
    :: !was -> atomic { MAY_DIE; eventfd = true }
    :: else
    fi;
    was = false
}

proctype StoreBuffer()
{
end:
    do
    :: atomic { pending -> tail = buffered; pending = false }
    od
}

proctype Owner()
{
    byte n;
    bool was, listens;
    do
    :: n < PUBLISHES ->
        atomic { FLUSHED -> MAY_DIE; n++; buffered = n; pending = true }
#ifndef BROKEN_NO_FENCE
        FLUSHED;
#endif
        atomic { MAY_DIE; listens = reader }
        if
        :: listens -> wake(0, true)
        :: else
        fi
    :: else -> break
    od;
    goto over;
died:
    unreaped++;
over:
    skip
}

proctype Asker()
{
    byte n;
    bool was;
    do
    :: n < ASKS ->
        atomic { MAY_DIE; n++; asked = n }
        wake(1, false)
    :: else -> break
    od;
    goto over;
died:
    unreaped++;
over:
    skip
}

inline look_at_all()
{
    seen[0] = tail;
    seen[1] = asked
}

proctype Sleeper()
{
    bool got[2];
    byte kicks_seen;

#ifdef BROKEN_NO_JOIN_FENCE
    seen[0] = tail;
    reader = true;
#else
    reader = true;
    seen[0] = tail;
#endif
end:
    do
    :: eventfd ->
#ifdef BROKEN_TAKE_FIRST
        eventfd = false;
        d_step { got[0] = dirty[0]; dirty[0] = false }
        d_step { got[1] = dirty[1]; dirty[1] = false }
        notified = false;
#else
#ifdef BROKEN_READ_LAST
        notified = false;
        eventfd = false;
#else
        eventfd = false;
        notified = false;
#endif
        d_step { got[0] = dirty[0]; dirty[0] = false }
        d_step { got[1] = dirty[1]; dirty[1] = false }
#endif
        if
        :: got[0] -> seen[0] = tail
        :: else
        fi;
        if
        :: got[1] -> seen[1] = asked
        :: else
        fi;
        d_step { got[0] = false; got[1] = false }
        if
        :: kicks_seen != kicks -> kicks_seen = kicks; look_at_all()
        :: else
        fi
#ifdef STALL
#ifdef BROKEN_NO_LOOK
    :: true -> skip
#else
    :: true -> look_at_all()
#endif
#endif
    od
}

proctype Master()
{
end:
    do
    :: unreaped > 0 ->
        unreaped--;
#ifndef BROKEN_NO_KICK
        kicks++;
#ifdef BROKEN_POLITE_KICK
        if
        :: !notified -> eventfd = true
        :: else
        fi
#else
        eventfd = true
#endif
#endif
    od
}

#ifdef STALL
#define ALL_SEEN (seen[0] == tail && !pending && seen[1] == asked)
/* What is published does not change for ever; so at last it has been seen for good. */
ltl heard { <> [] ALL_SEEN }
#else
proctype Monitor()
{
    timeout -> assert(seen[0] == tail && seen[1] == asked)
}
#endif

init
{
    atomic {
        run StoreBuffer();
        run Owner();
        run Asker();
        run Sleeper();
#ifndef STALL
        run Master();
        run Monitor();
#endif
    }
}
