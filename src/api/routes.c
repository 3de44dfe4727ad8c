/*
 * The routing table. A route that is not here is a 404.
 */
#include "api/routes.h"

#define READ  HTTP_GET
#define WRITE HTTP_POST

const struct http_route api_routes[] = {
    {WRITE, "/api/threads", api_threads_create, true},
    {READ, "/api/threads", api_threads_list, false},
    {READ, "/api/threads/{id}", api_thread_get, false},
    {HTTP_PATCH, "/api/threads/{id}", api_thread_patch, true},
    {HTTP_DELETE, "/api/threads/{id}", api_thread_delete, false},
    {READ, "/api/threads/{id}/messages", api_thread_messages, false},
    {WRITE, "/api/threads/{id}/messages", api_ask, true},
    {WRITE, "/api/threads/{id}/messages/stream", api_ask_stream, true},
    {READ, "/api/turns/{id}", api_turn_get, false},
    {READ, "/api/turns/{id}/stream", api_turn_stream, false},
    {WRITE, "/api/turns/{id}/cancel", api_turn_cancel, false},
    {READ, "/api/metrics/performance", api_performance, false},
    {READ, "/metrics", api_metrics, false},
    {READ, "/livez", api_livez, false},
    {READ, "/readyz", api_readyz, false},
    {WRITE, "/v1/chat/completions", api_chat_completions, true},
    {READ, "/v1/models", api_models, false},
};

const size_t api_route_count = sizeof api_routes / sizeof api_routes[0];
