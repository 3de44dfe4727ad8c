-- Threads, turns and messages; the views that people and alerts read.
-- Times are UTC text 'YYYY-MM-DD HH:MM:SS.ffffff', which sorts; durations are milliseconds.
-- A turn is one upstream call and has one user message and at most one assistant message.

CREATE TABLE schema_migrations (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT;

CREATE TABLE threads (
    id         TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
    org        TEXT NOT NULL CHECK (org <> ''),
    title      TEXT,
    created_at TEXT NOT NULL CHECK (length(created_at) = 26),
    deleted_at TEXT
) STRICT;

CREATE INDEX threads_by_org ON threads (org, created_at, id) WHERE deleted_at IS NULL;

CREATE TABLE turns (
    id                TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
    org               TEXT NOT NULL CHECK (org <> ''),
    thread_id         TEXT REFERENCES threads (id),   -- NULL: stateless chat
    provider          TEXT NOT NULL,
    model             TEXT NOT NULL,
    status            TEXT NOT NULL
                      CHECK (status IN ('complete', 'cancelled', 'incomplete', 'failed')),
    finish_reason     TEXT,
    error_code        TEXT,
    ttft_ms           REAL,                           -- NULL: no content ever came
    latency_ms        REAL,
    queue_wait_ms     REAL,
    prompt_tokens     INTEGER,                        -- NULL: the provider did not say
    completion_tokens INTEGER,
    followers         INTEGER NOT NULL DEFAULT 0,
    hits              INTEGER NOT NULL DEFAULT 0,
    generation        INTEGER NOT NULL DEFAULT 0,
    key_digest        BLOB NOT NULL CHECK (length(key_digest) = 32),
    created_at        TEXT NOT NULL CHECK (length(created_at) = 26),
    finished_at       TEXT NOT NULL CHECK (length(finished_at) = 26)
) STRICT;

CREATE INDEX turns_by_thread ON turns (thread_id, created_at, id) WHERE thread_id IS NOT NULL;
CREATE INDEX turns_by_end ON turns (finished_at, id);

CREATE TABLE messages (
    id         TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
    turn_id    TEXT NOT NULL REFERENCES turns (id),
    thread_id  TEXT REFERENCES threads (id),
    role       TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content    TEXT NOT NULL,
    citations  TEXT CHECK (citations IS NULL OR json_valid(citations)),
    created_at TEXT NOT NULL CHECK (length(created_at) = 26),
    UNIQUE (turn_id, role)
) STRICT;

-- One row a turn, with both texts whole.
CREATE VIEW turn_audit AS
SELECT t.id, t.thread_id, t.org, t.provider, t.model, t.status, t.finish_reason, t.error_code,
       u.content AS question, a.content AS answer,
       t.ttft_ms, t.latency_ms, t.queue_wait_ms, t.prompt_tokens, t.completion_tokens,
       t.followers, t.hits, t.created_at, t.finished_at
FROM turns t
LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user'
LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant';

-- One row: the last 100 turns by their end. Percentiles are nearest-rank, over the turns that
-- have the figure; error_rate counts failed and incomplete, not cancelled.
CREATE VIEW slo_last_100 AS
WITH
last AS (SELECT * FROM turns ORDER BY finished_at DESC, id DESC LIMIT 100),
ttft AS (
    SELECT ttft_ms AS v, row_number() OVER (ORDER BY ttft_ms) AS k, count(*) OVER () AS n
    FROM last WHERE ttft_ms IS NOT NULL
),
latency AS (
    SELECT latency_ms AS v, row_number() OVER (ORDER BY latency_ms) AS k, count(*) OVER () AS n
    FROM last WHERE latency_ms IS NOT NULL
)
SELECT
    (SELECT count(*) FROM last) AS turns,
    (SELECT v FROM ttft WHERE k = (50 * n + 99) / 100) AS ttft_p50_ms,
    (SELECT v FROM ttft WHERE k = (95 * n + 99) / 100) AS ttft_p95_ms,
    (SELECT v FROM ttft WHERE k = (99 * n + 99) / 100) AS ttft_p99_ms,
    (SELECT v FROM ttft WHERE k = n) AS ttft_max_ms,
    (SELECT v FROM latency WHERE k = (50 * n + 99) / 100) AS latency_p50_ms,
    (SELECT v FROM latency WHERE k = (95 * n + 99) / 100) AS latency_p95_ms,
    (SELECT v FROM latency WHERE k = (99 * n + 99) / 100) AS latency_p99_ms,
    (SELECT v FROM latency WHERE k = n) AS latency_max_ms,
    (SELECT coalesce(avg(status IN ('failed', 'incomplete')), 0.0) FROM last) AS error_rate,
    (SELECT count(*) FROM last) AS leaders,
    (SELECT coalesce(sum(followers), 0) FROM last) AS followers,
    (SELECT coalesce(sum(hits), 0) FROM last) AS hits;
