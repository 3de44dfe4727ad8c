/*
 * The texts of the mock provider: tokens that depend on the question alone, and the
 * OpenAI chunks and objects around them. Writes into buffers, sends nothing.
 */
#ifndef DAC_MOCK_RENDER_H
#define DAC_MOCK_RENDER_H

#include "tools/mock/call.h"

/* Fills what depends on the question: hash, count of tokens. Model and tool are the
 * caller's. */
void answer_init(struct answer *a, const struct spec *s, const char *user, size_t n);
void answer_free(struct answer *a);
/* Appends content token `i`. */
void answer_token(const struct answer *a, uint64_t i, struct buf *out);
void answer_reasoning(const struct answer *a, uint64_t i, struct buf *out);
/* Tokens as usage counts them. */
uint64_t answer_completion_tokens(const struct answer *a);
const char *answer_finish(const struct answer *a);

/* Makes the beginning that all chunks of a call share. */
void render_prefix(struct answer *a, uint64_t call_id);
/* Each appends one chunk's JSON. */
void render_role(const struct answer *a, struct buf *out);
void render_delta(const struct answer *a, const char *field, const char *text, size_t n,
                  struct buf *out);
/* Piece `i` of RENDER_TOOL_PIECES of a tool call. */
#define RENDER_TOOL_PIECES 4
void render_tool(const struct answer *a, uint64_t i, struct buf *out);
void render_finish(const struct answer *a, struct buf *out);
void render_usage(const struct answer *a, struct buf *out);
/* The whole answer as one chat.completion object. */
void render_completion(const struct answer *a, uint64_t call_id, struct buf *out);

#endif
