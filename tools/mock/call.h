/*
 * A call is one chat completion that the mock provider answers as its spec says. Life:
 *
 *   started --ttft--> --barrier--> sending --(gap, backpressure, barriers)--> ended
 *       \________________ stall: silence until the client leaves _______________/
 *
 * It ends in exactly one of: end (all bytes with the kernel), cut (by script),
 * closed_by_client, reset_by_client. Owned by mock.calls; freed at its end.
 */
#ifndef DAC_MOCK_CALL_H
#define DAC_MOCK_CALL_H

#include "tools/mock/mock.h"

/* What the answer is made of; see render.h. Strings are owned. */
struct answer {
    const struct spec *spec;
    uint64_t tokens; /* content tokens */
    bool tool_calls;
    char user_hash[9];  /* first 8 hex digits of SHA-256 of the last user message */
    char *model, *tool; /* tool: name of the function that is called */
    uint64_t prompt_tokens;
    struct buf prefix; /* a chunk's beginning, up to `"choices":` */
};

struct call {
    struct mock *mock;
    struct exchange *x;
    uint64_t id;
    uint64_t arrived_ns, due_ns, split_due_ns, cut_due_ns;
    struct spec spec;
    struct answer answer;
    bool stream, include_usage;
    bool role_sent, junk_sent, closing, stalled, finished, first_logged;
    bool passed[SPEC_BARRIERS];
    uint64_t sent, reasoning_sent, tool_sent;
    struct barrier *at; /* where it waits, or NULL */
    struct buf pend;    /* with `split`: what is still to be sent in pieces */
    size_t pend_off;
    struct event timer, ping;
    TAILQ_ENTRY(call) link;      /* mock.calls */
    TAILQ_ENTRY(call) wait_link; /* barrier.waiting */
};

/* Starts `c`, whose spec and answer are filled. It may be over before this returns. */
void call_start(struct call *c);
/* The barrier where it waits let it through. */
void call_pass(struct call *c);
/* Breaks it off without counting anything, for a reset. */
void call_drop(struct call *c);

#endif
