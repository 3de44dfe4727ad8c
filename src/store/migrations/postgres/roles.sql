-- Two roles that need no login: grant them to those that have one. May be run again.
-- Needs the right to create roles; the database's owner then gives them their rights with
-- the statements below, and each migration does so too.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dac_service') THEN
        CREATE ROLE dac_service NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dac_auditor') THEN
        CREATE ROLE dac_auditor NOLOGIN;
    END IF;
END
$$;

COMMENT ON ROLE dac_service IS 'DAC at work: reads and adds, changes what may change, never deletes';
COMMENT ON ROLE dac_auditor IS 'DAC''s auditors: read the views';
