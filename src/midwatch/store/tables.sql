CREATE TABLE alerts (
  subject TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  starts_at BIGINT NOT NULL,
  status TEXT NOT NULL,
  ends_at BIGINT,
  changed_at BIGINT,
  received_at BIGINT NOT NULL,
  invariant TEXT NOT NULL,
  component TEXT NOT NULL,
  severity INTEGER NOT NULL,
  message TEXT NOT NULL,
  facts JSON NOT NULL,
  silenced_by TEXT,
  PRIMARY KEY (subject, fingerprint, starts_at)
);
CREATE INDEX alerts_in_question ON alerts (subject, invariant, component) WHERE status != 'resolved';
CREATE INDEX alerts_received ON alerts (received_at);
CREATE TABLE batches (
  id INTEGER NOT NULL,
  subject TEXT NOT NULL,
  severity INTEGER NOT NULL,
  opened_at BIGINT NOT NULL,
  queued BOOLEAN NOT NULL,
  attempts INTEGER NOT NULL,
  next_attempt_at BIGINT,
  last_error TEXT,
  claim_holder TEXT,
  claim_token TEXT,
  claim_until BIGINT,
  claim_process TEXT,
  set_at BIGINT NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX batches_queue ON batches (severity, opened_at, id) WHERE queued = 1;
CREATE INDEX batches_subject ON batches (subject, id);
CREATE TABLE change_readings (
  name TEXT NOT NULL,
  state JSON NOT NULL,
  read_at BIGINT,
  failed_at BIGINT,
  error TEXT NOT NULL,
  PRIMARY KEY (name)
);
CREATE TABLE changes (
  id INTEGER NOT NULL,
  dedup_key TEXT NOT NULL,
  subject TEXT NOT NULL,
  at BIGINT NOT NULL,
  since BIGINT,
  kind TEXT NOT NULL,
  title TEXT NOT NULL,
  source TEXT NOT NULL,
  labels JSON NOT NULL,
  version_from TEXT NOT NULL,
  version_to TEXT NOT NULL,
  link TEXT NOT NULL,
  author TEXT NOT NULL,
  details JSON NOT NULL,
  recorded_at BIGINT NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (dedup_key)
);
CREATE INDEX changes_at ON changes (at, id);
CREATE INDEX changes_subject ON changes (subject, at, id);
CREATE TABLE cursors (
  name TEXT NOT NULL,
  audit_id INTEGER NOT NULL,
  updated_at BIGINT NOT NULL,
  PRIMARY KEY (name)
);
CREATE TABLE daemons (
  name TEXT NOT NULL,
  kind TEXT NOT NULL,
  beat_at BIGINT NOT NULL,
  info JSON NOT NULL,
  PRIMARY KEY (name)
);
CREATE TABLE delivery_threads (
  target TEXT NOT NULL,
  thread TEXT NOT NULL,
  reference JSON NOT NULL,
  updated_at BIGINT NOT NULL,
  PRIMARY KEY (target, thread)
);
CREATE INDEX delivery_threads_updated ON delivery_threads (updated_at);
CREATE TABLE hourly_calls (
  hour BIGINT NOT NULL,
  outcome TEXT NOT NULL,
  calls INTEGER NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  cache_read_tokens BIGINT NOT NULL,
  cache_write_tokens BIGINT NOT NULL,
  cost_usd FLOAT NOT NULL,
  PRIMARY KEY (hour, outcome)
);
CREATE TABLE hourly_tickets (
  hour BIGINT NOT NULL,
  invariant TEXT NOT NULL,
  opened INTEGER NOT NULL,
  PRIMARY KEY (hour, invariant)
);
CREATE TABLE idempotency_keys (
  principal TEXT NOT NULL,
  "key" TEXT NOT NULL,
  request_digest TEXT NOT NULL,
  status INTEGER NOT NULL,
  answer JSON NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (principal, "key")
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);
CREATE TABLE monitors (
  id TEXT NOT NULL,
  name TEXT NOT NULL,
  process TEXT NOT NULL,
  knows JSON NOT NULL,
  digest TEXT NOT NULL,
  renewed_at BIGINT NOT NULL,
  lease FLOAT NOT NULL,
  given INTEGER NOT NULL,
  PRIMARY KEY (id)
);
CREATE TABLE pauses (
  kind TEXT NOT NULL,
  until BIGINT NOT NULL,
  set_at BIGINT NOT NULL,
  reason TEXT NOT NULL,
  actor TEXT NOT NULL,
  PRIMARY KEY (kind)
);
CREATE TABLE scheduled_runs (
  schedule TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  at BIGINT NOT NULL,
  state TEXT NOT NULL,
  session_id TEXT,
  reason TEXT NOT NULL,
  claimed_at BIGINT NOT NULL,
  PRIMARY KEY (schedule, fingerprint, at)
);
CREATE INDEX scheduled_runs_claimed ON scheduled_runs (claimed_at) WHERE state = 'claimed';
CREATE TABLE schedules (
  name TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  definition TEXT NOT NULL,
  seen_until BIGINT NOT NULL,
  missed INTEGER NOT NULL,
  superseded BOOLEAN NOT NULL,
  PRIMARY KEY (name, fingerprint, definition)
);
CREATE TABLE senders (
  subject TEXT NOT NULL,
  received_at BIGINT NOT NULL,
  heartbeat_at BIGINT,
  truncated JSON NOT NULL,
  PRIMARY KEY (subject)
);
CREATE TABLE silences (
  id INTEGER NOT NULL,
  revision BIGINT NOT NULL,
  matchers JSON NOT NULL,
  starts_at BIGINT NOT NULL,
  ends_at BIGINT NOT NULL,
  rrule TEXT,
  window_seconds FLOAT,
  timezone TEXT,
  author TEXT NOT NULL,
  reason TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expired_at BIGINT,
  expired_by TEXT,
  PRIMARY KEY (id)
);
CREATE INDEX silences_end ON silences (ends_at);
CREATE UNIQUE INDEX silences_revision ON silences (revision);
CREATE TABLE spending (
  day TEXT NOT NULL,
  usd FLOAT NOT NULL,
  PRIMARY KEY (day)
);
CREATE TABLE subjects (
  name TEXT NOT NULL,
  revision INTEGER NOT NULL,
  cycle INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  last_error TEXT,
  last_good_at BIGINT,
  last_look_at BIGINT,
  state JSON NOT NULL,
  kind TEXT,
  watcher TEXT,
  PRIMARY KEY (name)
);
CREATE INDEX subjects_watcher ON subjects (watcher);
CREATE TABLE summed (
  name TEXT NOT NULL,
  until BIGINT NOT NULL,
  PRIMARY KEY (name)
);
CREATE TABLE tokens (
  id INTEGER NOT NULL,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  digest TEXT NOT NULL,
  role TEXT NOT NULL,
  scopes JSON NOT NULL,
  created_at BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  expires_at BIGINT NOT NULL,
  parent_id INTEGER,
  last_used_at BIGINT,
  revoked_at BIGINT,
  PRIMARY KEY (id),
  UNIQUE (digest)
);
CREATE INDEX tokens_end ON tokens (expires_at);
CREATE INDEX tokens_parent ON tokens (parent_id);
CREATE TABLE transcript_entries (
  id INTEGER NOT NULL,
  project_key TEXT NOT NULL,
  session_id TEXT NOT NULL,
  subpath TEXT NOT NULL,
  uuid TEXT,
  at BIGINT NOT NULL,
  entry TEXT NOT NULL,
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX transcript_entries_once ON transcript_entries (project_key, session_id, subpath, uuid);
CREATE INDEX transcript_entries_order ON transcript_entries (project_key, session_id, subpath, id);
CREATE TABLE diagnoses (
  id INTEGER NOT NULL,
  batch_id INTEGER NOT NULL,
  token TEXT NOT NULL,
  outcome TEXT NOT NULL,
  model TEXT NOT NULL,
  prompt_version TEXT NOT NULL,
  started_at BIGINT NOT NULL,
  finished_at BIGINT,
  answer JSON,
  markdown TEXT,
  confidence TEXT,
  verified_claims INTEGER,
  total_claims INTEGER,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  cache_read_tokens INTEGER NOT NULL,
  cache_write_tokens INTEGER NOT NULL,
  cost_usd FLOAT NOT NULL,
  error TEXT,
  request_id TEXT,
  evidence JSON NOT NULL,
  explains JSON NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(batch_id) REFERENCES batches (id)
);
CREATE INDEX diagnoses_batch ON diagnoses (batch_id);
CREATE INDEX diagnoses_started ON diagnoses (started_at);
CREATE INDEX diagnoses_unsettled ON diagnoses (started_at) WHERE outcome IN ('running', 'lost', 'late');
CREATE TABLE tickets (
  id INTEGER NOT NULL,
  subject TEXT NOT NULL,
  invariant TEXT NOT NULL,
  component TEXT NOT NULL,
  severity INTEGER NOT NULL,
  status TEXT NOT NULL,
  held BOOLEAN NOT NULL,
  message TEXT NOT NULL,
  facts JSON NOT NULL,
  unseen_since BIGINT,
  first_seen_at BIGINT NOT NULL,
  opened_at BIGINT NOT NULL,
  last_seen_at BIGINT NOT NULL,
  occurrence_count INTEGER NOT NULL,
  seen_cycle INTEGER,
  flapping BOOLEAN NOT NULL,
  previous_id INTEGER,
  batch_id INTEGER NOT NULL,
  acknowledged_at BIGINT,
  acknowledged_by TEXT,
  resolved_at BIGINT,
  resolution TEXT,
  first_aid JSON,
  diagnosis_id INTEGER,
  left_out_by INTEGER,
  PRIMARY KEY (id),
  FOREIGN KEY(batch_id) REFERENCES batches (id)
);
CREATE INDEX tickets_batch ON tickets (batch_id);
CREATE INDEX tickets_invariant ON tickets (invariant, severity, opened_at, id);
CREATE INDEX tickets_key ON tickets (subject, invariant, component, opened_at, id);
CREATE UNIQUE INDEX tickets_one_unresolved_per_key ON tickets (subject, invariant, component) WHERE status <> 'resolved';
CREATE INDEX tickets_opened ON tickets (opened_at, id);
CREATE INDEX tickets_subject ON tickets (subject, severity, opened_at, id);
CREATE INDEX tickets_subject_invariant ON tickets (subject, invariant, severity, opened_at, id);
CREATE INDEX tickets_unresolved ON tickets (severity, opened_at, id) WHERE status <> 'resolved';
CREATE INDEX tickets_urgency ON tickets (severity, opened_at, id);
CREATE TABLE action_runs (
  id INTEGER NOT NULL,
  ticket_id INTEGER NOT NULL,
  proposal TEXT NOT NULL,
  diagnosis_id INTEGER NOT NULL,
  kind TEXT NOT NULL,
  target JSON NOT NULL,
  what TEXT NOT NULL,
  state TEXT NOT NULL,
  approved_by TEXT NOT NULL,
  channel TEXT NOT NULL,
  approved_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  run_by TEXT,
  process TEXT,
  started_at BIGINT,
  until BIGINT,
  ended_at BIGINT,
  output TEXT,
  PRIMARY KEY (id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE UNIQUE INDEX action_runs_once ON action_runs (ticket_id, proposal);
CREATE TABLE audit (
  id INTEGER NOT NULL,
  ticket_id INTEGER NOT NULL,
  at BIGINT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  "before" TEXT,
  "after" TEXT,
  why TEXT NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE INDEX audit_ticket ON audit (ticket_id, id);
CREATE TABLE deliveries (
  id INTEGER NOT NULL,
  dedup_key TEXT NOT NULL,
  route TEXT NOT NULL,
  target TEXT NOT NULL,
  event TEXT NOT NULL,
  thread TEXT NOT NULL,
  ticket_id INTEGER,
  content JSON NOT NULL,
  state TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  due_at BIGINT NOT NULL,
  due_since BIGINT NOT NULL,
  attempts INTEGER NOT NULL,
  claim_token TEXT,
  claim_until BIGINT,
  ended_at BIGINT,
  last_error TEXT,
  PRIMARY KEY (id),
  UNIQUE (dedup_key),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE INDEX deliveries_created ON deliveries (created_at);
CREATE INDEX deliveries_due ON deliveries (target, thread, due_at) WHERE state = 'due';
CREATE INDEX deliveries_state ON deliveries (state, created_at, id);
CREATE INDEX deliveries_thread ON deliveries (target, thread);
CREATE INDEX deliveries_ticket ON deliveries (ticket_id);
CREATE TABLE diagnosis_tickets (
  diagnosis_id INTEGER NOT NULL,
  ticket_id INTEGER NOT NULL,
  PRIMARY KEY (diagnosis_id, ticket_id),
  FOREIGN KEY(diagnosis_id) REFERENCES diagnoses (id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE INDEX diagnosis_tickets_ticket ON diagnosis_tickets (ticket_id);
CREATE TABLE investigations (
  id TEXT NOT NULL,
  ticket_id INTEGER NOT NULL,
  question TEXT NOT NULL,
  requested_by TEXT NOT NULL,
  callback_url TEXT,
  created_at BIGINT NOT NULL,
  cancelled_at BIGINT,
  PRIMARY KEY (id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE INDEX investigations_created ON investigations (created_at, id);
CREATE INDEX investigations_ticket ON investigations (ticket_id);
CREATE TABLE past_incidents (
  ticket_id INTEGER NOT NULL,
  subject TEXT NOT NULL,
  invariant TEXT NOT NULL,
  component TEXT NOT NULL,
  words TEXT NOT NULL,
  PRIMARY KEY (ticket_id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE INDEX past_incidents_invariant ON past_incidents (invariant, ticket_id);
CREATE INDEX past_incidents_key ON past_incidents (subject, invariant, component, ticket_id);
CREATE INDEX past_incidents_subject ON past_incidents (subject, invariant, ticket_id);
CREATE TABLE pull_requests (
  id INTEGER NOT NULL,
  ticket_id INTEGER NOT NULL,
  repository TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  branch TEXT NOT NULL,
  base TEXT NOT NULL,
  state TEXT NOT NULL,
  number INTEGER,
  url TEXT,
  head TEXT,
  session_id TEXT NOT NULL,
  requested_by TEXT NOT NULL,
  waiting TEXT,
  approved_by TEXT,
  checks TEXT NOT NULL,
  review TEXT NOT NULL,
  seen JSON NOT NULL,
  created_at BIGINT NOT NULL,
  checked_at BIGINT,
  next_check_at BIGINT,
  failures INTEGER NOT NULL,
  last_error TEXT,
  told_resolved_at BIGINT,
  PRIMARY KEY (id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE INDEX pull_requests_due ON pull_requests (next_check_at, id) WHERE next_check_at IS NOT NULL;
CREATE UNIQUE INDEX pull_requests_one_per_attempt ON pull_requests (ticket_id, repository, attempt);
CREATE TABLE sessions (
  id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  ticket_id INTEGER,
  forked_from TEXT,
  model TEXT NOT NULL,
  interactive BOOLEAN NOT NULL,
  prompt TEXT NOT NULL,
  cwd TEXT NOT NULL,
  directories JSON NOT NULL,
  options JSON NOT NULL,
  phase TEXT NOT NULL,
  status JSON,
  cost_usd FLOAT NOT NULL,
  repositories JSON NOT NULL,
  runner TEXT,
  heartbeat_at BIGINT NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE INDEX sessions_created ON sessions (created_at, id);
CREATE INDEX sessions_phase ON sessions (phase, created_at, id);
CREATE INDEX sessions_ticket ON sessions (ticket_id);
CREATE TABLE silenced (
  id INTEGER NOT NULL,
  subject TEXT NOT NULL,
  invariant TEXT NOT NULL,
  component TEXT NOT NULL,
  severity INTEGER NOT NULL,
  message TEXT NOT NULL,
  "by" TEXT NOT NULL,
  silence_id INTEGER,
  until BIGINT,
  first_seen_at BIGINT NOT NULL,
  ended_at BIGINT,
  ticket_id INTEGER,
  PRIMARY KEY (id),
  FOREIGN KEY(silence_id) REFERENCES silences (id),
  FOREIGN KEY(ticket_id) REFERENCES tickets (id)
);
CREATE UNIQUE INDEX silenced_now ON silenced (subject, invariant, component) WHERE ended_at IS NULL;
CREATE INDEX silenced_seen ON silenced (first_seen_at);
CREATE INDEX silenced_ticket ON silenced (ticket_id);
CREATE TABLE alembic_version (
  version_num VARCHAR(32) NOT NULL,
  CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)
