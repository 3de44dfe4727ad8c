-- Threads, turns and messages; the views that people and alerts read. The same tables and
-- views as in SQLite, with PostgreSQL's types.
-- A turn is one upstream call and has one user message and at most one assistant message.
-- Names are not qualified: everything goes into the first schema of the search path.

CREATE TABLE schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL,
    checksum   text
);

COMMENT ON TABLE schema_migrations IS 'Which of the program''s numbered changes of the schema this database has; a program refuses a database with a number that it does not know';
COMMENT ON COLUMN schema_migrations.version IS 'Number of the change, from 1 without a gap';
COMMENT ON COLUMN schema_migrations.name IS 'What the change is called';
COMMENT ON COLUMN schema_migrations.applied_at IS 'When this database got it';
COMMENT ON COLUMN schema_migrations.checksum IS 'SHA-256 of the SQL text that was run, in hexadecimal digits';

CREATE TABLE threads (
    id         uuid PRIMARY KEY,
    org        text NOT NULL CHECK (org <> ''),
    title      text,
    created_at timestamptz NOT NULL,
    deleted_at timestamptz,
    UNIQUE (id, org)
);

CREATE INDEX threads_by_org ON threads (org, created_at, id) WHERE deleted_at IS NULL;

COMMENT ON TABLE threads IS 'Conversations: each belongs to one organisation and holds turns in the order of their creation';
COMMENT ON COLUMN threads.id IS 'UUID version 7: sorts by the time it was made';
COMMENT ON COLUMN threads.org IS 'The organisation whose thread it is; no other one can read it through the service';
COMMENT ON COLUMN threads.title IS 'What clients show; NULL: none was given';
COMMENT ON COLUMN threads.created_at IS 'When a client created it';
COMMENT ON COLUMN threads.deleted_at IS 'When a client deleted it: a mark, the rows stay until they are pruned; NULL: it lives';

CREATE TABLE turns (
    id                uuid PRIMARY KEY,
    org               text NOT NULL CHECK (org <> ''),
    thread_id         uuid,
    provider          text NOT NULL,
    model             text NOT NULL,
    status            text NOT NULL
                      CHECK (status IN ('complete', 'cancelled', 'incomplete', 'failed')),
    finish_reason     text,
    error_code        text,
    ttft_ms           double precision,
    latency_ms        double precision,
    queue_wait_ms     double precision,
    prompt_tokens     bigint,
    completion_tokens bigint,
    followers         bigint NOT NULL DEFAULT 0,
    hits              bigint NOT NULL DEFAULT 0,
    generation        integer NOT NULL DEFAULT 0,
    fetcher           text,
    key_digest        bytea NOT NULL CHECK (octet_length(key_digest) = 32),
    created_at        timestamptz NOT NULL,
    finished_at       timestamptz NOT NULL,
    CONSTRAINT turns_thread FOREIGN KEY (thread_id, org) REFERENCES threads (id, org)
);

CREATE INDEX turns_by_thread ON turns (thread_id, created_at, id) WHERE thread_id IS NOT NULL;
CREATE INDEX turns_by_end ON turns (finished_at, id);
CREATE INDEX turns_with_trouble ON turns (finished_at, id) WHERE status IN ('incomplete', 'failed');

COMMENT ON TABLE turns IS 'One row for each call that was made to a provider, however many clients got its answer; written once, when it has ended';
COMMENT ON COLUMN turns.id IS 'UUID version 7, made before the call: sorts by the time of asking';
COMMENT ON COLUMN turns.org IS 'The organisation that asked';
COMMENT ON COLUMN turns.thread_id IS 'The thread it belongs to, of the same org; NULL: stateless chat';
COMMENT ON COLUMN turns.provider IS 'The configured provider that was called';
COMMENT ON COLUMN turns.model IS 'The model that was asked for';
COMMENT ON COLUMN turns.status IS 'complete: the provider ended it well; cancelled: by a client, or because nobody listened any more; incomplete: it broke off after the first text; failed: there never was a text';
COMMENT ON COLUMN turns.finish_reason IS 'The provider''s own word for why it stopped, such as stop or length; NULL: none';
COMMENT ON COLUMN turns.error_code IS 'What went wrong, as clients were told; NULL: nothing';
COMMENT ON COLUMN turns.ttft_ms IS 'Milliseconds from the first client''s arrival to the first text, waiting for the rate limit included; NULL: no text ever came';
COMMENT ON COLUMN turns.latency_ms IS 'Milliseconds from the first client''s arrival to the end';
COMMENT ON COLUMN turns.queue_wait_ms IS 'Milliseconds of that spent waiting for the rate limit';
COMMENT ON COLUMN turns.prompt_tokens IS 'Tokens of the question and its context; NULL: the provider did not say';
COMMENT ON COLUMN turns.completion_tokens IS 'Tokens of the answer; NULL: the provider did not say';
COMMENT ON COLUMN turns.followers IS 'Requests that joined while it ran; final once it has left memory';
COMMENT ON COLUMN turns.hits IS 'Requests that were served from its finished answer; final once it has left memory';
COMMENT ON COLUMN turns.generation IS 'How often another worker had to begin it anew because the one that ran it died; 0: never';
COMMENT ON COLUMN turns.fetcher IS 'Who ran the call at last, such as worker 2; NULL: not known';
COMMENT ON COLUMN turns.key_digest IS 'SHA-256 of everything that makes two questions the same: equal digests could have shared a call';
COMMENT ON COLUMN turns.created_at IS 'When the first client asked';
COMMENT ON COLUMN turns.finished_at IS 'When the answer, or the failure, was complete';

CREATE TABLE messages (
    id         uuid PRIMARY KEY,
    turn_id    uuid NOT NULL REFERENCES turns (id),
    thread_id  uuid,
    role       text NOT NULL CHECK (role IN ('user', 'assistant')),
    content    text NOT NULL,
    citations  json,
    created_at timestamptz NOT NULL,
    tool_calls json,
    UNIQUE (turn_id, role)
);

COMMENT ON TABLE messages IS 'The texts of the turns: one question and at most one answer each';
COMMENT ON COLUMN messages.id IS 'UUID version 7';
COMMENT ON COLUMN messages.turn_id IS 'The turn it belongs to';
COMMENT ON COLUMN messages.thread_id IS 'The turn''s thread, repeated here; NULL: stateless chat';
COMMENT ON COLUMN messages.role IS 'user: the question; assistant: the answer, or what came of it';
COMMENT ON COLUMN messages.content IS 'The whole text';
COMMENT ON COLUMN messages.citations IS 'The sources that the provider named, as it wrote them; NULL: none';
COMMENT ON COLUMN messages.tool_calls IS 'What the answer asks the client to call, as the provider wrote it; NULL: nothing';
COMMENT ON COLUMN messages.created_at IS 'When the question was asked; when the answer was complete';

CREATE TABLE idempotency (
    org         text NOT NULL CHECK (org <> ''),
    key_digest  bytea NOT NULL CHECK (octet_length(key_digest) = 32),
    body_digest bytea NOT NULL CHECK (octet_length(body_digest) = 32),
    turn_id     uuid NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (org, key_digest)
);

CREATE INDEX idempotency_by_turn ON idempotency (turn_id);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

COMMENT ON TABLE idempotency IS 'Idempotency-Key headers of the last 24 hours and the turns they stand for';
COMMENT ON COLUMN idempotency.org IS 'The organisation that sent the key';
COMMENT ON COLUMN idempotency.key_digest IS 'SHA-256 of the header''s value';
COMMENT ON COLUMN idempotency.body_digest IS 'SHA-256 of the request it came with: the same key with another request is refused';
COMMENT ON COLUMN idempotency.turn_id IS 'The turn that answers each request with this key';
COMMENT ON COLUMN idempotency.created_at IS 'When the key was first used; after 24 hours it counts no longer';

CREATE TABLE rejected (
    id         uuid NOT NULL,
    kind       text NOT NULL
               CHECK (kind IN ('thread', 'turn', 'counts', 'title', 'delete')),
    org        text,
    reason     text NOT NULL,
    sqlstate   text,
    data       json,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (id, kind)
);

COMMENT ON TABLE rejected IS 'What could not be stored where it belongs, set aside so that the rest could go on: its clients got an error';
COMMENT ON COLUMN rejected.id IS 'Id of the thread or turn that it was about';
COMMENT ON COLUMN rejected.kind IS 'What was to be written: a thread, a turn with its messages, the final counts of a turn, the title or the deletion of a thread';
COMMENT ON COLUMN rejected.org IS 'The organisation it belongs to, as far as it can be told';
COMMENT ON COLUMN rejected.reason IS 'Why it was refused';
COMMENT ON COLUMN rejected.sqlstate IS 'PostgreSQL''s code of the refusal; NULL: another reason';
COMMENT ON COLUMN rejected.data IS 'Everything that was to be written, contents included; NULL: nothing of it can be written';
COMMENT ON COLUMN rejected.created_at IS 'When it was set aside';

CREATE VIEW turn_audit AS
SELECT format('%s %s %s %s/%s, first text %s ms, all %s ms, shared by %s: "%s" -> %s',
              to_char(t.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
              t.org,
              t.status || coalesce(' (' || t.error_code || ')', ''),
              t.provider, t.model,
              coalesce(round(t.ttft_ms::numeric)::text, '-'),
              coalesce(round(t.latency_ms::numeric)::text, '-'),
              1 + t.followers + t.hits,
              regexp_replace(left(u.content, 60), '\s+', ' ', 'g'),
              coalesce('"' || regexp_replace(left(a.content, 60), '\s+', ' ', 'g') || '"', '(none)'))
           AS line,
       t.id, t.thread_id, t.org, t.provider, t.model, t.status, t.finish_reason, t.error_code,
       u.content AS question, a.content AS answer, a.citations, a.tool_calls,
       t.ttft_ms, t.latency_ms, t.queue_wait_ms, t.prompt_tokens, t.completion_tokens,
       t.followers, t.hits, t.generation, t.fetcher, t.key_digest, t.created_at, t.finished_at
FROM turns t
LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user'
LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant';

COMMENT ON VIEW turn_audit IS 'One row for each turn, with both texts whole; its column "line" says it all in one readable line';
COMMENT ON COLUMN turn_audit.line IS 'End in UTC, org, status, provider and model, times, how many requests got the answer, the beginnings of question and answer';
COMMENT ON COLUMN turn_audit.id IS 'Id of the turn, as clients and logs have it';
COMMENT ON COLUMN turn_audit.thread_id IS 'The thread it belongs to; NULL: stateless chat';
COMMENT ON COLUMN turn_audit.org IS 'The organisation that asked';
COMMENT ON COLUMN turn_audit.provider IS 'The configured provider that was called';
COMMENT ON COLUMN turn_audit.model IS 'The model that was asked for';
COMMENT ON COLUMN turn_audit.status IS 'complete, cancelled, incomplete or failed';
COMMENT ON COLUMN turn_audit.finish_reason IS 'The provider''s own word for why it stopped; NULL: none';
COMMENT ON COLUMN turn_audit.error_code IS 'What went wrong, as clients were told; NULL: nothing';
COMMENT ON COLUMN turn_audit.question IS 'The question, whole';
COMMENT ON COLUMN turn_audit.answer IS 'The answer, whole, or what came of it; NULL: none';
COMMENT ON COLUMN turn_audit.citations IS 'The sources that the provider named; NULL: none';
COMMENT ON COLUMN turn_audit.tool_calls IS 'What the answer asks the client to call; NULL: nothing';
COMMENT ON COLUMN turn_audit.ttft_ms IS 'Milliseconds to the first text; NULL: no text ever came';
COMMENT ON COLUMN turn_audit.latency_ms IS 'Milliseconds to the end';
COMMENT ON COLUMN turn_audit.queue_wait_ms IS 'Milliseconds of that spent waiting for the rate limit';
COMMENT ON COLUMN turn_audit.prompt_tokens IS 'Tokens of the question and its context; NULL: the provider did not say';
COMMENT ON COLUMN turn_audit.completion_tokens IS 'Tokens of the answer; NULL: the provider did not say';
COMMENT ON COLUMN turn_audit.followers IS 'Requests that joined while it ran';
COMMENT ON COLUMN turn_audit.hits IS 'Requests that were served from its finished answer';
COMMENT ON COLUMN turn_audit.generation IS 'How often it was begun anew by another worker';
COMMENT ON COLUMN turn_audit.fetcher IS 'Who ran the call at last, such as worker 2';
COMMENT ON COLUMN turn_audit.key_digest IS 'SHA-256 of what makes two questions the same';
COMMENT ON COLUMN turn_audit.created_at IS 'When the first client asked';
COMMENT ON COLUMN turn_audit.finished_at IS 'When the answer, or the failure, was complete';

CREATE VIEW slo_last_100 AS
WITH last AS (SELECT * FROM turns ORDER BY finished_at DESC, id DESC LIMIT 100)
SELECT count(*) AS turns,
       percentile_disc(0.50) WITHIN GROUP (ORDER BY ttft_ms) AS ttft_p50_ms,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY ttft_ms) AS ttft_p95_ms,
       percentile_disc(0.99) WITHIN GROUP (ORDER BY ttft_ms) AS ttft_p99_ms,
       max(ttft_ms) AS ttft_max_ms,
       percentile_disc(0.50) WITHIN GROUP (ORDER BY latency_ms) AS latency_p50_ms,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY latency_ms) AS latency_p95_ms,
       percentile_disc(0.99) WITHIN GROUP (ORDER BY latency_ms) AS latency_p99_ms,
       max(latency_ms) AS latency_max_ms,
       percentile_disc(0.50) WITHIN GROUP (ORDER BY queue_wait_ms) AS queue_wait_p50_ms,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY queue_wait_ms) AS queue_wait_p95_ms,
       percentile_disc(0.99) WITHIN GROUP (ORDER BY queue_wait_ms) AS queue_wait_p99_ms,
       max(queue_wait_ms) AS queue_wait_max_ms,
       coalesce(avg((status IN ('failed', 'incomplete'))::int), 0)::double precision AS error_rate,
       count(*) AS leaders,
       coalesce(sum(followers), 0)::bigint AS followers,
       coalesce(sum(hits), 0)::bigint AS hits
FROM last;

COMMENT ON VIEW slo_last_100 IS 'One row: the last 100 turns by their end, as /api/metrics/performance has them. Percentiles are nearest-rank, over the turns that have the figure';
COMMENT ON COLUMN slo_last_100.turns IS 'How many turns these are: 100, or all there are';
COMMENT ON COLUMN slo_last_100.ttft_p50_ms IS 'Half of the turns had their first text within so many milliseconds';
COMMENT ON COLUMN slo_last_100.ttft_p95_ms IS '95 % of the turns had their first text within so many milliseconds';
COMMENT ON COLUMN slo_last_100.ttft_p99_ms IS '99 % of the turns had their first text within so many milliseconds';
COMMENT ON COLUMN slo_last_100.ttft_max_ms IS 'The longest time to a first text';
COMMENT ON COLUMN slo_last_100.latency_p50_ms IS 'Half of the turns had ended within so many milliseconds';
COMMENT ON COLUMN slo_last_100.latency_p95_ms IS '95 % of the turns had ended within so many milliseconds';
COMMENT ON COLUMN slo_last_100.latency_p99_ms IS '99 % of the turns had ended within so many milliseconds';
COMMENT ON COLUMN slo_last_100.latency_max_ms IS 'The longest turn';
COMMENT ON COLUMN slo_last_100.queue_wait_p50_ms IS 'Half of the turns waited so many milliseconds at most for the rate limit';
COMMENT ON COLUMN slo_last_100.queue_wait_p95_ms IS '95 % of the turns waited so many milliseconds at most for the rate limit';
COMMENT ON COLUMN slo_last_100.queue_wait_p99_ms IS '99 % of the turns waited so many milliseconds at most for the rate limit';
COMMENT ON COLUMN slo_last_100.queue_wait_max_ms IS 'The longest wait for the rate limit';
COMMENT ON COLUMN slo_last_100.error_rate IS 'Share of failed and incomplete turns, 0 to 1; cancelled ones are no errors';
COMMENT ON COLUMN slo_last_100.leaders IS 'Requests that made a call: one for each turn';
COMMENT ON COLUMN slo_last_100.followers IS 'Requests that joined a running call';
COMMENT ON COLUMN slo_last_100.hits IS 'Requests that were served from a finished answer';

CREATE VIEW coalesce_hourly AS
SELECT date_trunc('hour', finished_at, 'UTC') AS hour,
       (count(*) + sum(followers) + sum(hits))::bigint AS requests,
       count(*) AS calls,
       sum(followers)::bigint AS followers,
       sum(hits)::bigint AS hits,
       (sum(followers) + sum(hits))::bigint AS calls_saved,
       round(100.0 * (sum(followers) + sum(hits)) / (count(*) + sum(followers) + sum(hits)), 1)
           ::double precision AS saved_percent,
       coalesce(sum(prompt_tokens * (followers + hits)), 0)::bigint AS prompt_tokens_saved,
       coalesce(sum(completion_tokens * (followers + hits)), 0)::bigint AS completion_tokens_saved
FROM turns
GROUP BY 1;

COMMENT ON VIEW coalesce_hourly IS 'What sharing calls has saved, one row for each hour in which a turn ended';
COMMENT ON COLUMN coalesce_hourly.hour IS 'Begin of the hour, of UTC';
COMMENT ON COLUMN coalesce_hourly.requests IS 'Requests that were answered: calls, followers and hits';
COMMENT ON COLUMN coalesce_hourly.calls IS 'Calls that were made for them';
COMMENT ON COLUMN coalesce_hourly.followers IS 'Requests that joined a running call';
COMMENT ON COLUMN coalesce_hourly.hits IS 'Requests that were served from a finished answer';
COMMENT ON COLUMN coalesce_hourly.calls_saved IS 'Calls that were not made: followers and hits';
COMMENT ON COLUMN coalesce_hourly.saved_percent IS 'The same as a percentage of the requests';
COMMENT ON COLUMN coalesce_hourly.prompt_tokens_saved IS 'Tokens that the calls not made would have sent, where the provider says how many';
COMMENT ON COLUMN coalesce_hourly.completion_tokens_saved IS 'Tokens that the calls not made would have brought, where the provider says how many';

CREATE VIEW incomplete_turns AS
SELECT t.id, t.thread_id, t.org, t.provider, t.model, t.status, t.error_code, t.generation,
       t.fetcher, t.latency_ms, t.created_at, t.finished_at,
       length(a.content) AS answer_length, u.content AS question, a.content AS answer
FROM turns t
LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user'
LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant'
WHERE t.status IN ('incomplete', 'failed');

COMMENT ON VIEW incomplete_turns IS 'The turns that broke off or failed; cancelled ones are not among them';
COMMENT ON COLUMN incomplete_turns.id IS 'Id of the turn';
COMMENT ON COLUMN incomplete_turns.thread_id IS 'The thread it belongs to; NULL: stateless chat';
COMMENT ON COLUMN incomplete_turns.org IS 'The organisation that asked';
COMMENT ON COLUMN incomplete_turns.provider IS 'The configured provider that was called';
COMMENT ON COLUMN incomplete_turns.model IS 'The model that was asked for';
COMMENT ON COLUMN incomplete_turns.status IS 'incomplete: it broke off after the first text; failed: there never was a text';
COMMENT ON COLUMN incomplete_turns.error_code IS 'What went wrong, as clients were told';
COMMENT ON COLUMN incomplete_turns.generation IS 'How often it was begun anew by another worker';
COMMENT ON COLUMN incomplete_turns.fetcher IS 'Who ran the call at last, such as worker 2';
COMMENT ON COLUMN incomplete_turns.latency_ms IS 'Milliseconds until it broke off';
COMMENT ON COLUMN incomplete_turns.created_at IS 'When the first client asked';
COMMENT ON COLUMN incomplete_turns.finished_at IS 'When it broke off';
COMMENT ON COLUMN incomplete_turns.answer_length IS 'Characters of the answer that had come; NULL: none';
COMMENT ON COLUMN incomplete_turns.question IS 'The question, whole';
COMMENT ON COLUMN incomplete_turns.answer IS 'What had come of the answer; NULL: nothing';
