/*
 * Claiming, joining, attaching, abandoning and recycling: one leader per key.
 *
 * Mirrors shm/index.c: bucket_lock, index_rebuild, join_existing, index_join, chain_insert,
 * chain_remove, index_find_turn, index_attach, index_abandon, index_recycle; shm/flight.c:
 * flight_claim, flight_unclaim, flight_drop_reader, flight_release; shm/slot.c: slot_sweep
 * (Master); src/flight/fetch.c: grace_over (the leader's end); src/process/recorder_adopt.c
 * and recorder_recycle.c (Recorder).
 *
 * One bucket, one key, two flights. Two workers ask the same question; a third attaches by
 * the turn's id, which it looked up without the lock. Each may die between any two steps,
 * DEATHS in a run, the recorder too; a lock that a dead process held says so to the next one.
 *
 * Holds: no flight is indexed while another one of the key could be joined; whoever has its
 * bit set reads the same use of the flight until it drops it; a flight is given up only if
 * nobody listens, and then nobody joins it; a chain leads to exactly the flights that name
 * the bucket whenever the lock is given back; in the end every flight is free.
 *
 * Broken on purpose:
 *   BROKEN_NO_RECHECK       no second look after the claim
 *   BROKEN_NO_REBUILD       the lock of a dead process is taken over as it lies there
 *   BROKEN_ATTACH_BLIND     attaching does not compare again under the lock
 *   BROKEN_RECYCLE_UNLOCKED the recycler looks at the bitmap before it has the lock
 *   BROKEN_ABANDON_UNLOCKED the owner looks at the bitmap before it has the lock
 *   BROKEN_SWEEP_FREES      the sweep frees a claim that is indexed already
 */
#ifndef DEATHS
#define DEATHS 2
#endif
#define WORKERS  3 /* 0 and 1 ask, 2 attaches */
#define RECORDER 3
#define NOBODY   7

#define FREE     0
#define CLAIMED  1 /* until it ends */
#define ORPHANED 2
#define ENDED    3

typedef Flight {
    byte state, owner, incarnation, next, seq;
    bool bucket, closed;
    bool reader[WORKERS];
};
Flight flights[2];
byte head, claim_seq;
byte lock = NOBODY;
bool owner_dead;
byte dead = NOBODY, deaths;

#define NO_READERS(f)                                                                       \
    (!flights[f].reader[0] && !flights[f].reader[1] && !flights[f].reader[2])
#define IS_RUNNING(f) (flights[f].state == CLAIMED || flights[f].state == ORPHANED)
#define JOINABLE(f)   (flights[f].bucket && IS_RUNNING(f) && !flights[f].closed)
#define MAY_DIE                                                                             \
    if                                                                                      \
    :: deaths < DEATHS && dead == NOBODY -> deaths++; dead = me; goto died                  \
    :: skip                                                                                 \
    fi

#define IN_CHAIN(f) (head == (f) + 1 || (head != 0 && flights[head - 1].next == (f) + 1))

inline unlock()
{
    atomic {
        MAY_DIE;
        assert(lock == me);
        assert(flights[0].bucket == IN_CHAIN(0) && flights[1].bucket == IN_CHAIN(1));
        lock = NOBODY
    }
}

/* Newest first; of two flights the new one is the newest. */
inline insert(f)
{
    atomic { MAY_DIE; flights[f].next = head }
    atomic { MAY_DIE; head = f + 1 }
}

inline rebuild()
{
    atomic { MAY_DIE; head = 0 }
    atomic {
        MAY_DIE;
        if
        :: flights[0].bucket && flights[0].state == FREE -> flights[0].bucket = false
        :: flights[0].bucket && flights[0].state != FREE -> flights[0].next = 0; head = 1
        :: else
        fi
    }
    atomic {
        MAY_DIE;
        if
        :: flights[1].bucket && flights[1].state == FREE -> flights[1].bucket = false
        :: flights[1].bucket && flights[1].state != FREE ->
            if
            :: head == 1 && flights[0].seq > flights[1].seq ->
                flights[1].next = 0; flights[0].next = 2
            :: else -> flights[1].next = head; head = 2
            fi
        :: else
        fi
    }
}

inline take_lock()
{
    atomic { lock == NOBODY -> MAY_DIE; lock = me }
    if
    :: owner_dead ->
#ifndef BROKEN_NO_REBUILD
        rebuild();
#endif
        atomic { MAY_DIE; owner_dead = false }
    :: else
    fi
}

/* Under the lock: sets `at` to a flight and its bit, or to NOBODY. */
inline join_existing()
{
    atomic {
        MAY_DIE;
        at = (head == 0 -> NOBODY : head - 1);
        if
        :: at != NOBODY && flights[at].state == FREE -> at = NOBODY
        :: at != NOBODY && flights[at].state == ENDED -> at = NOBODY
        :: at != NOBODY && IS_RUNNING(at) && flights[at].closed -> at = NOBODY
        :: else
        fi
    }
    if
    :: at != NOBODY ->
        atomic { MAY_DIE; flights[at].reader[me] = true; use = flights[at].incarnation }
    :: else
    fi
}

#define SAME_USE (flights[at].incarnation == use && flights[at].state != FREE)

proctype Worker(byte me)
{
    byte at = NOBODY, mine = NOBODY, use;

    if
    :: me < 2 -> /* index_join */
        take_lock();
        join_existing();
        unlock();
        if
        :: at != NOBODY -> goto follow
        :: else
        fi;
        atomic {
            if
            :: flights[0].state == FREE -> mine = 0
            :: flights[1].state == FREE -> mine = 1
            :: else -> goto quit /* no room: 503 */
            fi;
            use = flights[mine].incarnation
        }
        atomic {
            MAY_DIE;
            if
            :: flights[mine].state == FREE && flights[mine].incarnation == use ->
                flights[mine].state = CLAIMED;
                flights[mine].owner = me
            :: else -> goto quit /* the hand goes on; here it is no room */
            fi
        }
        atomic { MAY_DIE; flights[mine].closed = false; flights[mine].next = 0 }
        if
        :: take_lock()
        :: atomic { lock != NOBODY -> goto unclaim } /* 20 ms are over */
        fi;
#ifndef BROKEN_NO_RECHECK
        join_existing();
        if
        :: at != NOBODY -> unlock(); goto unclaim
        :: else
        fi;
#endif
        atomic {
            MAY_DIE; claim_seq++; flights[mine].seq = claim_seq;
            flights[mine].reader[me] = true
        }
        atomic {
            MAY_DIE;
            assert(!JOINABLE(0) && !JOINABLE(1));
            flights[mine].bucket = true
        }
        insert(mine);
        unlock();
        goto lead
    :: else -> /* index_find_turn, index_attach */
        atomic {
            if
            :: flights[0].bucket && flights[0].state != FREE -> at = 0
            :: flights[1].bucket && flights[1].state != FREE -> at = 1
            :: true -> goto quit
            fi;
            use = flights[at].incarnation
        }
        take_lock();
#ifndef BROKEN_ATTACH_BLIND
        if
        :: !flights[at].bucket || flights[at].incarnation != use -> unlock(); goto quit
        :: else
        fi;
#endif
        atomic { MAY_DIE; flights[at].reader[me] = true }
        unlock();
        goto follow
    fi;

unclaim:
    /* readers = 0, then FREE; nobody else can see it */
    atomic {
        MAY_DIE;
        assert(flights[mine].state == CLAIMED && flights[mine].owner == me &&
               !flights[mine].bucket);
        flights[mine].state = FREE; flights[mine].owner = NOBODY;
        flights[mine].incarnation++
    }
    mine = NOBODY;
    if
    :: at == NOBODY -> goto quit
    :: else
    fi;

follow: /* until it ends, or the client leaves */
    atomic {
        assert(SAME_USE);
        (flights[at].state == ENDED || true) -> MAY_DIE;
        assert(me == 2 || !flights[at].closed);
        flights[at].reader[me] = false
    }
    goto quit;

lead:
    at = mine;
    if
    :: atomic { MAY_DIE; flights[at].reader[me] = false } /* its client leaves first */
    :: skip
    fi;
    do
    :: atomic { MAY_DIE; flights[at].state = ENDED; flights[at].owner = NOBODY }
       break
    :: NO_READERS(at) -> /* index_abandon */
        take_lock();
#ifdef BROKEN_ABANDON_UNLOCKED
        atomic { MAY_DIE; flights[at].closed = true }
#else
        atomic {
            MAY_DIE;
            if
            :: NO_READERS(at) -> flights[at].closed = true
            :: else
            fi
        }
#endif
        unlock();
        if
        :: flights[at].closed ->
            atomic { MAY_DIE; flights[at].state = ENDED; flights[at].owner = NOBODY }
            break
        :: else
        fi
    od;
    atomic { MAY_DIE; assert(SAME_USE || !flights[at].reader[me]); }
    atomic {
        MAY_DIE;
        if
        :: flights[at].incarnation == use -> flights[at].reader[me] = false
        :: else
        fi
    }
    goto quit;
died:
quit:
    skip
}

proctype Recorder()
{
    byte me = RECORDER, at, use;
end:
born:
    do
    :: atomic {
           if
           :: flights[0].state == ORPHANED -> at = 0
           :: flights[1].state == ORPHANED -> at = 1
           fi;
           MAY_DIE;
           flights[at].state = ENDED
       }
    :: atomic {
           if
           :: flights[0].state == ENDED && NO_READERS(0) -> at = 0
           :: flights[1].state == ENDED && NO_READERS(1) -> at = 1
           fi;
           use = flights[at].incarnation
       }
       if
       :: !flights[at].bucket -> /* a recorder died there: nobody can reach it */
           atomic { MAY_DIE; flights[at].state = FREE; flights[at].incarnation++ }
       :: else ->
           take_lock();
           if
#ifdef BROKEN_RECYCLE_UNLOCKED
           :: true ->
#else
           :: flights[at].state == ENDED && NO_READERS(at) ->
#endif
               atomic {
                   MAY_DIE;
                   if
                   :: head == at + 1 -> head = flights[at].next
                   :: head != at + 1 && head != 0 -> flights[head - 1].next = flights[at].next
                   :: else
                   fi
               }
               atomic { MAY_DIE; flights[at].bucket = false; flights[at].next = 0 }
               atomic { MAY_DIE; flights[at].state = FREE; flights[at].incarnation++ }
#ifndef BROKEN_RECYCLE_UNLOCKED
           :: else
#endif
           fi;
           unlock()
       fi
    od;
died:
    atomic { dead == NOBODY -> at = 0; use = 0; goto born }
}

inline sweep(f)
{
    if
    :: flights[f].state == CLAIMED && flights[f].owner == dead ->
        flights[f].owner = NOBODY;
        if
#ifdef BROKEN_SWEEP_FREES
        :: true ->
#else
        :: !flights[f].bucket ->
#endif
            flights[f].reader[0] = false;
            flights[f].reader[1] = false;
            flights[f].reader[2] = false;
            flights[f].state = FREE;
            flights[f].incarnation++
#ifndef BROKEN_SWEEP_FREES
        :: else -> flights[f].state = ORPHANED
#endif
        fi
    :: else
    fi;
    if
    :: dead < WORKERS -> flights[f].reader[dead] = false
    :: else
    fi
}

/* The kernel gives the dead one's lock back before waitpid() returns; then it is swept. */
proctype Master()
{
end:
    do
    :: atomic {
           dead != NOBODY && lock == dead -> lock = NOBODY; owner_dead = true
       }
    :: atomic { dead != NOBODY && lock != dead -> sweep(0) }
       atomic { sweep(1); dead = NOBODY }
    od
}

proctype Monitor()
{
    timeout -> assert(flights[0].state == FREE && flights[1].state == FREE);
    assert(owner_dead || head == 0)
}

init
{
    atomic {
        run Worker(0);
        run Worker(1);
        run Worker(2);
        run Recorder();
        run Master();
        run Monitor()
    }
}
