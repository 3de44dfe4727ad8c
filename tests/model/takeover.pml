/*
 * The takeover: a flight survives the death of whoever fetches it.
 *
 * Mirrors src/flight/takeover.c: takeover_try, take_over, read_remains, log_reset (TAKE_OVER);
 * shm/flight.c: flight_adopt, flight_advance; shm/slot.c: slot_sweep (Master);
 * src/process/recorder_adopt.c: recorder_end_orphan (Recorder); src/flight/fetch_log.c: put,
 * fetch_end (the owner's steps); src/flight/audience.c: cursor_begin, cursor_skip_old,
 * encode_records; src/flight/attach.c: flights_resume, add_attached (ATTACH); src/api/native.c
 * and turn_stream.c: event ids.
 *
 * takeover_keep_question is `question`: a follower that joined before the question was in the
 * log has its own copy. flight_decline only tells the recorder when: here it may end an
 * orphan at any time.
 *
 * One flight, one log of whole records (blocklog.pml is about their bytes), WORKERS workers
 * with one client each, of which worker 0 fetches at first. Anybody, the recorder too, may
 * die between any two steps, DEATHS times in a run. A dead worker is reaped, swept and
 * started anew. A native client then comes back with the last event's id; another one is a
 * newcomer. Client 0 is native, the others are either.
 *
 * Holds: only one owner appends; generations in the log never fall, there is one END and it
 * is last; what a client is sent never belongs to an older generation than what it was sent
 * before; nothing is answered before the question is in the log; every text is whole and has no byte twice; whoever comes when a takeover goes on
 * streaming sees nothing of what was before it; at last the flight has ended, and so has
 * every client.
 *
 * Broken on purpose:
 *   BROKEN_LEASE        an owner that merely stands still is orphaned
 *   BROKEN_BLIND_ADOPT  adopting stores the word instead of comparing and swapping it
 *   BROKEN_NO_RESET     a successor goes on without RESET
 *   BROKEN_BEHIND_END   a reader takes over without looking for END
 *   BROKEN_END_TWICE    the recorder writes END without looking for one
 *   BROKEN_START_FIRST  `start` is stored before RESET is published
 *   BROKEN_START_LOST   a successor leaves `start` where it is if the RESET is there already
 *   BROKEN_WORD_GEN     a resumed client is compared with the generation of the flight's word
 *   BROKEN_NO_QUESTION  a reader takes over a flight without a question that it has not, either
 *   BROKEN_OPEN_AT_ZERO the first event of a resumed stream says position 0
 */
#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#define TEXTS        2 /* per generation, at most */
#define TAKEOVER_MAX 2
#define RECORDER     WORKERS
#define NOBODY       9
#define LOG_MAX      9

#define RUNNING  0 /* QUEUED, FETCHING, STREAMING */
#define ORPHANED 1
#define ENDED    2

#define TEXT  1
#define RESET 2
#define END   3
#define RECORD(type, gen, n) ((type) | ((gen) << 2) | ((n) << 5))
#define TYPE(r)              ((r) & 3)
#define GEN(r)               (((r) >> 2) & 7)
#define NUMBER(r)            ((r) >> 5)

byte state = RUNNING, owner = 0, generation;
byte records[LOG_MAX];
byte tail, start;
bool asked; /* REQUEST is in the log; it is none of `records` */
byte dead = NOBODY; /* who is to be reaped */
byte deaths;

/* Said of the run, not of the program. */
byte log_gen, ended, count, settled;

typedef Client {
    bool native, over;
    byte got;             /* texts of the present answer */
    bool has_id;
    byte id_gen, id_n;    /* the last event's id */
    byte least;           /* generation below which it must see nothing */
};
Client clients[WORKERS];
#define ME clients[me]

#define MAY_DIE                                                                             \
    if                                                                                      \
    :: deaths < DEATHS && dead == NOBODY -> deaths++; dead = me; goto died                  \
    :: skip                                                                                 \
    fi

inline append(type, gen, n)
{
    d_step {
        assert(!ended && gen >= log_gen && (asked || type == END));
        log_gen = gen;
        records[tail] = RECORD(type, gen, n);
        tail++;
        if
        :: type == END -> ended = 1
        :: type == RESET -> count = 0
        :: type == TEXT -> count++; settled = gen
        fi
    }
}

/* --- what a client is sent ---------------------------------------------------------- */

inline send_id(gen, n)
{
    assert(!ME.has_id || gen >= ME.id_gen);
    ME.has_id = true;
    ME.id_gen = gen;
    ME.id_n = n
}

inline deliver(rec)
{
    if
    :: TYPE(rec) == TEXT && NUMBER(rec) < past /* it has that already */
    :: TYPE(rec) == TEXT && NUMBER(rec) >= past ->
        assert(GEN(rec) >= ME.least);
        assert(NUMBER(rec) == ME.got);
        ME.got++;
        send_id(GEN(rec), ME.got)
    :: TYPE(rec) == RESET ->
        past = 0;
        if
        :: ME.native -> ME.got = 0; send_id(GEN(rec), 0)
        :: !ME.native && ME.got > 0 -> ME.over = true /* an error: it knows no reset */
        :: else
        fi
    :: TYPE(rec) == END ->
        assert(ME.got == count);
        ME.over = true
    fi
}

/* --- worker ------------------------------------------------------------------------- */

/* Where a reader begins: behind the last RESET, or at 0; `from_gen` is that RESET's. */
inline attach()
{
    atomic {
        MAY_DIE; at = start; ME.least = settled;
        if
        :: question = !asked
        :: !leads -> question = false /* no memory for it, or it came by the turn's id */
        fi
    }
    atomic {
        MAY_DIE;
        d_step {
            from_gen = 0;
            if
            :: at > 0 -> from_gen = GEN(records[at - 1])
            :: else
            fi;
            if
            :: ME.has_id ->
                i = at;
                do
                :: i < tail && TYPE(records[i]) == RESET ->
                    from_gen = GEN(records[i]); i++; at = i
                :: i < tail && TYPE(records[i]) != RESET -> i++
                :: i >= tail -> break
                od;
                i = 0
            :: else
            fi
        }
    }
#ifdef BROKEN_WORD_GEN
    atomic { MAY_DIE; from_gen = generation }
#define IS_OLD (ME.id_gen != from_gen)
#else
#define IS_OLD (ME.id_gen < from_gen)
#endif
    atomic {
        MAY_DIE;
        d_step {
            past = 0;
            if
            :: !ME.native || !ME.has_id ->
                if
                :: ME.native -> send_id(from_gen, 0)
                :: else
                fi
            :: ME.native && ME.has_id && IS_OLD -> ME.got = 0; send_id(from_gen, 0) /* reset */
            :: ME.native && ME.has_id && !IS_OLD ->
                past = ME.id_n;
#ifdef BROKEN_OPEN_AT_ZERO
                send_id(ME.id_gen, 0)
#else
                send_id(ME.id_gen, past)
#endif
            fi;
            from_gen = 0
        }
    }
}

/* The flight is this worker's: what its log says is kept, but the answer begins anew. */
inline take_over()
{
    d_step {
        content = false;
        begin = 0;
        i = 0;
        do
        :: i < tail && TYPE(records[i]) == RESET -> content = false; i++; begin = i
        :: i < tail && TYPE(records[i]) != RESET -> content = true; i++
        :: i >= tail -> break
        od;
        i = 0
    }
    if
    :: content ->
#ifndef BROKEN_NO_RESET
#ifdef BROKEN_START_FIRST
        atomic { MAY_DIE; start = tail + 1 }
        atomic { MAY_DIE; append(RESET, mine, 0) }
#else
        atomic { MAY_DIE; append(RESET, mine, 0) }
        atomic { MAY_DIE; start = tail }
#endif
#else
        skip
#endif
#ifndef BROKEN_START_LOST
    :: !content && begin > start -> atomic { MAY_DIE; start = begin }
    :: !content && begin <= start
#else
    :: !content
#endif
    fi;
    d_step { content = false; begin = 0; n = 0 }
}

#ifdef BROKEN_NO_QUESTION
#define CAN_ASK true
#else
#define CAN_ASK (asked || question)
#endif
#define CAN_BEGIN_ANEW (!ME.over && (ME.native || ME.got == 0) && CAN_ASK)
#ifdef BROKEN_BEHIND_END
#define UNFINISHED true
#else
#define UNFINISHED (at == tail && !ME.over)
#endif

proctype Worker(byte me)
{
    byte at, past, from_gen, i, mine, n, begin, seen_gen;
    bool leads, content, question;

    leads = (owner == me);
born:
    attach();
    do
    /* the owner's steps */
    :: atomic { leads && !asked && question -> MAY_DIE; asked = true; question = false }
    :: atomic { leads && asked && n < TEXTS -> MAY_DIE; append(TEXT, mine, n); n++ }
    :: leads && asked ->
        atomic { MAY_DIE; append(END, mine, 0) }
        atomic {
            MAY_DIE;
            assert(state == RUNNING && owner == me);
            state = ENDED; owner = NOBODY; leads = false
        }
    /* the reader's */
    :: atomic { asked && question -> question = false }
    :: atomic { !ME.over && at < tail && at >= start -> MAY_DIE; deliver(records[at]); at++ }
    :: atomic {
           !ME.over && at < start -> MAY_DIE;
           /* cursor_skip_old: to the RESET, or behind it if nothing was sent */
           if
           :: ME.got == 0 && past == 0 -> at = start
           :: (ME.got > 0 || past > 0) && at < start - 1 -> at = start - 1
           :: (ME.got > 0 || past > 0) && at == start - 1 && at < tail ->
               deliver(records[at]); at++
           fi
       }
    /* the heir's */
    :: atomic {
           state == ORPHANED && !leads && generation < TAKEOVER_MAX && UNFINISHED &&
               CAN_BEGIN_ANEW -> MAY_DIE; seen_gen = generation
       }
       atomic {
           MAY_DIE;
#ifdef BROKEN_BLIND_ADOPT
           if
           :: true ->
#else
           if
           :: state == ORPHANED && generation == seen_gen ->
#endif
               state = RUNNING; owner = me; generation = seen_gen + 1; mine = generation;
               leads = true
#ifndef BROKEN_BLIND_ADOPT
           :: else
#endif
           fi;
           seen_gen = 0
       }
       if
       :: leads -> take_over()
       :: else
       fi
    :: atomic { ME.over && !leads && state == ENDED -> break }
    od;
    goto quit;
died:
    atomic {
        dead == NOBODY -> /* swept: a new process, and the client or another one comes */
        d_step {
            at = 0; past = 0; from_gen = 0; mine = 0; n = 0; begin = 0; seen_gen = 0;
            leads = false; content = false; question = false; i = 0;
            if
            :: !ME.native -> ME.got = 0; ME.least = 0; ME.has_id = false
            :: else
            fi
        }
        goto born
    }
quit:
    skip
}

/* --- recorder, master --------------------------------------------------------------- */

proctype Recorder()
{
    byte me = RECORDER;
    byte seen_gen, i;
    bool has_end;
born:
    do
    :: atomic { state == ORPHANED -> MAY_DIE; seen_gen = generation }
       atomic {
           MAY_DIE;
           if
           :: state == ORPHANED && generation == seen_gen ->
               state = RUNNING; owner = me; generation++
           :: else -> goto born
           fi
       }
       seen_gen = 0;
       d_step {
#ifndef BROKEN_END_TWICE
           i = 0;
           do
           :: i < tail && TYPE(records[i]) == END -> has_end = true; i++
           :: i < tail && TYPE(records[i]) != END -> i++
           :: i >= tail -> break
           od;
#endif
           i = 0
       }
       if
       :: !has_end -> atomic { MAY_DIE; append(END, generation, 0) }
       :: else
       fi;
       has_end = false;
       atomic {
           MAY_DIE;
           assert(state == RUNNING && owner == me);
           state = ENDED; owner = NOBODY
       }
    :: state == ENDED -> goto quit
    od;
died:
    atomic { dead == NOBODY -> has_end = false; seen_gen = 0; i = 0; goto born }
quit:
    skip
}

/* Reaps and sweeps. */
proctype Master()
{
end:
    do
    :: atomic {
           dead != NOBODY ->
           if
           :: state == RUNNING && owner == dead -> state = ORPHANED; owner = NOBODY
           :: else
           fi;
           dead = NOBODY
       }
#ifdef BROKEN_LEASE
    :: atomic { state == RUNNING && owner == 0 -> state = ORPHANED; owner = NOBODY }
#endif
    od
}

init
{
    atomic {
        clients[0].native = true;
        byte w = 1;
        do
        :: w < WORKERS -> clients[w].native = true; w++
        :: w < WORKERS -> clients[w].native = false; w++
        :: w >= WORKERS -> break
        od;
        w = 0;
        do
        :: w < WORKERS -> run Worker(w); w++
        :: w >= WORKERS -> break
        od;
        w = 0;
        run Recorder();
        run Master()
    }
}
