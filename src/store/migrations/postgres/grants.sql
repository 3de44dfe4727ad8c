-- What the roles may do, where they exist. Run behind every migration; may be run again.
-- An answer that is stored cannot be changed by the service; nothing can be deleted by it.

DO $$
BEGIN
    IF to_regclass('schema_migrations') IS NULL THEN
        RETURN; -- the migration will do it
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'dac_service') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO dac_service', current_schema());
        GRANT SELECT ON schema_migrations, threads, turns, messages, idempotency, rejected
            TO dac_service;
        GRANT INSERT ON threads, turns, messages, idempotency, rejected TO dac_service;
        GRANT UPDATE (title, deleted_at) ON threads TO dac_service;
        GRANT UPDATE (followers, hits) ON turns TO dac_service;
        GRANT UPDATE (body_digest, turn_id, created_at) ON idempotency TO dac_service;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'dac_auditor') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO dac_auditor', current_schema());
        GRANT SELECT ON turn_audit, slo_last_100, coalesce_hourly, incomplete_turns
            TO dac_auditor;
    END IF;
END
$$;
