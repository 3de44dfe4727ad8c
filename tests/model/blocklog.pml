/*
 * The block log: one writer, any readers, and death between any two steps.
 *
 * Mirrors shm/blocklog.c: blocklog_open, reserve, block_after, block_take, put_bytes,
 * blocklog_append (Writer, Other); shm/blocklog_read.c: blocklog_unread, seek, copy_at,
 * blocklog_peek (Reader); shm/flight.c: flight_adopt, flight_advance, flight_release (Writer,
 * Recycler); shm/slot.c: slot_sweep (Master).
 *
 * Flight 0 is written by one Writer at a time, in records of 1 or 3 cells over blocks of 2;
 * records cross blocks. Whoever writes may die, or stand still as long as it likes, between
 * any two steps; once it is reaped the next Writer adopts the flight, opens the log and goes
 * on. Flight 1 takes blocks of the same pool meanwhile. When flight 0 has ended and nobody
 * reads it any more it is recycled, and flight 1 may have its blocks.
 *
 * Holds: a reader finds at every offset what was published there, and every record whole; the
 * tail never falls and leads nowhere without a block; one block has one user; END always has
 * room; every reader comes to END.
 *
 * Broken on purpose:
 *   BROKEN_PUBLISH_FIRST  the tail is published before the bytes
 *   BROKEN_LEASE          a writer that merely stands still loses the flight
 *   BROKEN_PLAIN_TAKE     a block is taken by a store
 *   BROKEN_NEXT_KEPT      a taken block keeps the link of its last use
 *   BROKEN_NO_END_ROOM    reserve() leaves no room for END
 *   BROKEN_FREE_UNREAD    a flight is recycled although its bitmap is not empty
 */
#ifndef DEATHS
#define DEATHS 1
#endif
#define WRITERS (DEATHS + 1)
#define BLOCKS  4
#define SIZE    2 /* cells of a block */
#define BYTES   4 /* flight_max_bytes, in cells; END may pass it */
#define READERS 1
#define NONE    15

#define RUNNING  0
#define ORPHANED 1
#define ENDED    2
#define FREE     3

/* A cell says whose record it is of, its place in it, and how long that is. */
#define CELL(gen, length, at) (((gen) << 4) | ((length) << 2) | (at))
#define END_CELL(gen)      (((gen) << 4) | 15)
#define IS_END(x)          (((x) & 15) == 15)
#define LEN(x)             (((x) >> 2) & 3)
#define FOREIGN            255

/* A block's owner word: nobody yet, flight 0 in its first use, flight 1. */
#define NOBODY   0
#define FLIGHT_0 1
#define FLIGHT_1 2

byte state = RUNNING, owner = 0, generation;
bool freed; /* flight 0's incarnation has moved on */
byte tail;
#define FIRST_BLOCK 0 /* taken in CLAIMED, by whoever claimed the flight */
byte block_owner[BLOCKS], next[BLOCKS];
byte cells[BLOCKS * SIZE];
byte readers = READERS;
byte dead = NONE, deaths;

/* Said of the run, not of the program. */
byte published[BYTES + 2];

#define IS_GONE(o) ((o) == NOBODY || ((o) == FLIGHT_0 && freed))
#define MAY_DIE                                                                             \
    if                                                                                      \
    :: me != NONE && deaths < DEATHS -> deaths++; dead = me; goto died                                    \
    :: skip                                                                                 \
    fi

/* block_take: `taken` is NONE if there is no block. Everybody looks from the same
 * place, so that they meet. */
inline take(who)
{
    taken = NONE;
    do
    :: taken == NONE ->
        atomic {
            if
            :: IS_GONE(block_owner[0]) -> taken = 0
            :: !IS_GONE(block_owner[0]) && IS_GONE(block_owner[1]) -> taken = 1
            :: !IS_GONE(block_owner[0]) && !IS_GONE(block_owner[1]) &&
               IS_GONE(block_owner[2]) -> taken = 2
            :: !IS_GONE(block_owner[0]) && !IS_GONE(block_owner[1]) &&
               !IS_GONE(block_owner[2]) && IS_GONE(block_owner[3]) -> taken = 3
            :: else -> break
            fi;
            was = block_owner[taken]
        }
        atomic {
            MAY_DIE;
#ifndef BROKEN_PLAIN_TAKE
            if
            :: block_owner[taken] != was -> taken = NONE
            :: else -> block_owner[taken] = who
            fi;
#else
            block_owner[taken] = who;
#endif
            was = 0
        }
    :: else ->
#ifndef BROKEN_NEXT_KEPT
        atomic { MAY_DIE; next[taken] = 0 }
#endif
        break
    od
}

/* reserve(): blocks are linked up to `want` cells behind the offset, or `no_room`. */
inline reserve(want)
{
    no_room = false;
    b = block;
    room = base + SIZE - offset;
    do
    :: !no_room && room < want ->
        if
        :: next[b] != 0 -> b = next[b] - 1; room = room + SIZE
        :: else ->
            take(FLIGHT_0);
            if
            :: taken == NONE -> no_room = true
            :: else ->
                atomic { MAY_DIE; next[b] = taken + 1 }
                b = taken;
                room = room + SIZE
            fi
        fi
    :: else -> break
    od;
    atomic { b = 0; room = 0; taken = 0 }
}

#ifdef BROKEN_NO_END_ROOM
#define END_ROOM 0
#else
#define END_ROOM 1
#endif

#define WHAT(size, at, final) (final -> END_CELL(gen) : CELL(gen, size, at))

/* What comes to be read: said at the moment of publishing. */
inline publish(from, size, final)
{
    d_step {
        assert(tail == from);
        i = 0;
        do
        :: i < size -> published[from + i] = WHAT(size, i, final); i++
        :: else -> break
        od;
        i = 0;
        tail = from + size
    }
}

/* blocklog_append and put_bytes */
inline append(size, final)
{
#ifdef BROKEN_PUBLISH_FIRST
    atomic { MAY_DIE; publish(offset, size, final) }
#endif
    do
    :: i < size ->
        atomic {
            MAY_DIE;
            if
            :: offset - base == SIZE ->
                assert(next[block] != 0);
                block = next[block] - 1;
                base = base + SIZE
            :: else
            fi;
            cells[block * SIZE + offset - base] = WHAT(size, i, final);
            offset++;
            i++
        }
    :: else -> i = 0; break
    od;
#ifndef BROKEN_PUBLISH_FIRST
    atomic { MAY_DIE; publish(offset - size, size, final) }
#endif
}

proctype Writer(byte me)
{
    byte gen, block, base, offset, b, room, taken, was, length, i;
    bool no_room;

    if
    :: me > 0 ->
        atomic {
            (state == ORPHANED && me == generation + 1) || state >= ENDED ->
            if
            :: state >= ENDED -> goto over
            :: else ->
                state = RUNNING;
                owner = me;
                generation++;
                gen = generation
            fi
        }
    :: else
    fi;
    /* blocklog_open; the first block was there before anybody could see the flight */
    atomic { MAY_DIE; block = FIRST_BLOCK; offset = tail }
    do
    :: base + SIZE < offset ->
        d_step { assert(next[block] != 0); block = next[block] - 1; base = base + SIZE }
    :: else -> break
    od;
    if
    :: tail > 0 && IS_END(published[tail - 1]) -> goto ended /* its log ended, not its word */
    :: else
    fi;
    reserve(END_ROOM);
    assert(!no_room); /* whoever had it before saw to that */
    do
    :: offset < BYTES ->
        if
        :: length = 1
        :: length = 3
        fi;
        if
        :: offset + length > BYTES -> break
        :: else
        fi;
        reserve(length + END_ROOM);
        if
        :: no_room -> break
        :: else -> append(length, false)
        fi
    :: true -> break
    od;
    length = 0;
    no_room = false;
    append(1, true);
ended:
    atomic { MAY_DIE; state = ENDED; owner = NONE }
    goto over;
died:
over:
    skip
}

/* Reaps and sweeps. */
proctype Master()
{
end:
    do
    :: atomic {
           dead != NONE ->
           if
           :: owner == dead && state == RUNNING -> state = ORPHANED; owner = NONE
           :: else
           fi;
           dead = NONE
       }
#ifdef BROKEN_LEASE
    :: atomic { state == RUNNING && owner == 0 -> state = ORPHANED; owner = NONE }
#endif
    od
}

/* One record after the other; a cell at a time, which is more than memcpy() does. */
proctype Reader()
{
    byte offset, block, base, unread, length, i, x;
    do
    :: atomic { tail > offset -> unread = tail - offset }
       length = 1;
       do
       :: i < length ->
           if
           :: block == 0 -> block = FIRST_BLOCK + 1
           :: else
           fi;
           do
           :: offset >= base + SIZE ->
               atomic { assert(block != 0); block = next[block - 1]; base = base + SIZE }
           :: else -> break
           od;
           atomic {
               assert(block != 0);
               x = cells[(block - 1) * SIZE + offset - base];
               assert(x == published[offset]);
               if
               :: IS_END(x) -> x = 0; goto last
               :: !IS_END(x) && i == 0 -> length = LEN(x); assert(length > 0 && length <= unread)
               :: else
               fi;
               x = 0;
               offset++;
               i++
           }
       :: else -> i = 0; length = 0; unread = 0; break
       od
    od;
last:
    readers--
}

proctype Recycler()
{
#ifdef BROKEN_FREE_UNREAD
    atomic { state == ENDED -> state = FREE; freed = true }
#else
    atomic { state == ENDED && readers == 0 -> state = FREE; freed = true }
#endif
}

/* Flight 1: two blocks, when it can have them. */
proctype Other()
{
    byte me = NONE, n, taken, was, mine[2];
end:
    do
    :: n < 2 ->
        take(FLIGHT_1);
        if
        :: taken == NONE -> state == FREE
        :: else ->
            atomic {
                assert(n == 0 || mine[0] != taken);
                cells[taken * SIZE] = FOREIGN;
                cells[taken * SIZE + 1] = FOREIGN;
                mine[n] = taken;
                taken = 0;
                n++
            }
        fi
    :: else -> break
    od;
    assert(cells[mine[0] * SIZE] == FOREIGN && cells[mine[0] * SIZE + 1] == FOREIGN);
    assert(cells[mine[1] * SIZE] == FOREIGN && cells[mine[1] * SIZE + 1] == FOREIGN);
    goto over;
died:
over:
    skip
}

init
{
    atomic {
        byte n = 0;
        block_owner[FIRST_BLOCK] = FLIGHT_0;
        next[3] = 1; /* what the last use of a block left */
        do
        :: n < WRITERS -> run Writer(n); n++
        :: else -> break
        od;
        n = 0;
        do
        :: n < READERS -> run Reader(); n++
        :: else -> break
        od;
        n = 0;
        run Other();
        run Recycler();
        run Master()
    }
}
