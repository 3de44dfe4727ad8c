-- Who fetched a turn, what was refused, idempotency keys; the views as PostgreSQL has them.

ALTER TABLE schema_migrations ADD COLUMN checksum TEXT; -- SHA-256 of the SQL text, hexadecimal

ALTER TABLE turns ADD COLUMN fetcher TEXT; -- such as 'worker 2'; NULL: not known

-- What the answer asks the client to call, a JSON array; NULL: nothing.
ALTER TABLE messages ADD COLUMN tool_calls TEXT CHECK (tool_calls IS NULL OR json_valid(tool_calls));

CREATE INDEX turns_with_trouble ON turns (finished_at, id)
WHERE status IN ('incomplete', 'failed');

-- Idempotency-Key headers of the last 24 hours and the turns they stand for.
CREATE TABLE idempotency (
    org         TEXT NOT NULL CHECK (org <> ''),
    key_digest  BLOB NOT NULL CHECK (length(key_digest) = 32),  -- of the header's value
    body_digest BLOB NOT NULL CHECK (length(body_digest) = 32), -- of the request
    turn_id     TEXT NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
    created_at  TEXT NOT NULL CHECK (length(created_at) = 26),
    PRIMARY KEY (org, key_digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_turn ON idempotency (turn_id);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

-- What could not be stored where it belongs, set aside so that the rest could go on.
CREATE TABLE rejected (
    id         TEXT NOT NULL CHECK (length(id) = 36), -- of the thread or turn
    kind       TEXT NOT NULL
               CHECK (kind IN ('thread', 'turn', 'counts', 'title', 'delete')),
    org        TEXT,
    reason     TEXT NOT NULL,
    sqlstate   TEXT,                                  -- NULL: not refused by PostgreSQL
    data       TEXT CHECK (data IS NULL OR json_valid(data)),
    created_at TEXT NOT NULL CHECK (length(created_at) = 26),
    PRIMARY KEY (id, kind)
) STRICT;

-- One row a turn, with both texts whole; "line" says it all in one readable line.
DROP VIEW turn_audit;
CREATE VIEW turn_audit AS
SELECT printf('%s %s %s %s/%s, first text %s ms, all %s ms, shared by %d: "%s" -> %s',
              substr(t.finished_at, 1, 19),
              t.org,
              t.status || coalesce(' (' || t.error_code || ')', ''),
              t.provider, t.model,
              CASE WHEN t.ttft_ms IS NULL THEN '-' ELSE printf('%.0f', t.ttft_ms) END,
              CASE WHEN t.latency_ms IS NULL THEN '-' ELSE printf('%.0f', t.latency_ms) END,
              1 + t.followers + t.hits,
              replace(replace(replace(substr(u.content, 1, 60), char(13), ' '), char(10), ' '), char(9), ' '),
              coalesce('"' || replace(replace(replace(substr(a.content, 1, 60), char(13), ' '), char(10), ' '), char(9), ' ') || '"', '(none)'))
           AS line,
       t.id, t.thread_id, t.org, t.provider, t.model, t.status, t.finish_reason, t.error_code,
       u.content AS question, a.content AS answer, a.citations, a.tool_calls,
       t.ttft_ms, t.latency_ms, t.queue_wait_ms, t.prompt_tokens, t.completion_tokens,
       t.followers, t.hits, t.generation, t.fetcher, t.key_digest, t.created_at, t.finished_at
FROM turns t
LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user'
LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant';

-- One row: the last 100 turns by their end. Percentiles are nearest-rank, over the turns that
-- have the figure; error_rate counts failed and incomplete, not cancelled.
DROP VIEW slo_last_100;
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
),
queue AS (
    SELECT queue_wait_ms AS v, row_number() OVER (ORDER BY queue_wait_ms) AS k, count(*) OVER () AS n
    FROM last WHERE queue_wait_ms IS NOT NULL
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
    (SELECT v FROM queue WHERE k = (50 * n + 99) / 100) AS queue_wait_p50_ms,
    (SELECT v FROM queue WHERE k = (95 * n + 99) / 100) AS queue_wait_p95_ms,
    (SELECT v FROM queue WHERE k = (99 * n + 99) / 100) AS queue_wait_p99_ms,
    (SELECT v FROM queue WHERE k = n) AS queue_wait_max_ms,
    (SELECT coalesce(avg(status IN ('failed', 'incomplete')), 0.0) FROM last) AS error_rate,
    (SELECT count(*) FROM last) AS leaders,
    (SELECT coalesce(sum(followers), 0) FROM last) AS followers,
    (SELECT coalesce(sum(hits), 0) FROM last) AS hits;

-- What sharing calls has saved, one row for each hour in which a turn ended.
CREATE VIEW coalesce_hourly AS
SELECT substr(finished_at, 1, 14) || '00:00' AS hour,
       count(*) + sum(followers) + sum(hits) AS requests,
       count(*) AS calls,
       sum(followers) AS followers,
       sum(hits) AS hits,
       sum(followers) + sum(hits) AS calls_saved,
       round(100.0 * (sum(followers) + sum(hits)) / (count(*) + sum(followers) + sum(hits)), 1)
           AS saved_percent,
       coalesce(sum(prompt_tokens * (followers + hits)), 0) AS prompt_tokens_saved,
       coalesce(sum(completion_tokens * (followers + hits)), 0) AS completion_tokens_saved
FROM turns
GROUP BY 1;

-- The turns that broke off or failed; cancelled ones are not among them.
CREATE VIEW incomplete_turns AS
SELECT t.id, t.thread_id, t.org, t.provider, t.model, t.status, t.error_code, t.generation,
       t.fetcher, t.latency_ms, t.created_at, t.finished_at,
       length(a.content) AS answer_length, u.content AS question, a.content AS answer
FROM turns t
LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user'
LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant'
WHERE t.status IN ('incomplete', 'failed');
