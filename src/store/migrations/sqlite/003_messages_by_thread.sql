-- A thread cannot go while a message says that it is its own: without this index each
-- thread that is pruned would have all messages read.
CREATE INDEX messages_by_thread ON messages (thread_id) WHERE thread_id IS NOT NULL;
