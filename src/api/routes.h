/*
 * The handlers of the routing table, one file per resource. Each owns the exchange it is
 * given and answers it, at once or later. ctx is the worker's struct api.
 */
#ifndef DAC_API_ROUTES_H
#define DAC_API_ROUTES_H

#include "api/api.h"

void api_threads_create(struct http_exchange *ex, void *ctx);
void api_threads_list(struct http_exchange *ex, void *ctx);
void api_thread_get(struct http_exchange *ex, void *ctx);
void api_thread_patch(struct http_exchange *ex, void *ctx);
void api_thread_delete(struct http_exchange *ex, void *ctx);
void api_thread_messages(struct http_exchange *ex, void *ctx);

void api_ask(struct http_exchange *ex, void *ctx);
void api_ask_stream(struct http_exchange *ex, void *ctx);

void api_turn_get(struct http_exchange *ex, void *ctx);
void api_turn_stream(struct http_exchange *ex, void *ctx);
void api_turn_cancel(struct http_exchange *ex, void *ctx);

void api_chat_completions(struct http_exchange *ex, void *ctx);
void api_models(struct http_exchange *ex, void *ctx);

void api_performance(struct http_exchange *ex, void *ctx);
void api_metrics(struct http_exchange *ex, void *ctx);
void api_livez(struct http_exchange *ex, void *ctx);
void api_readyz(struct http_exchange *ex, void *ctx);

#endif
