CREATE TABLE request_metrics (
    id {id},
    request_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    backend_id TEXT,
    model TEXT,
    operation TEXT NOT NULL,
    stream BOOLEAN NOT NULL,
    status INTEGER NOT NULL,
    success BOOLEAN NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT,
    rule TEXT,
    why TEXT,
    attempts INTEGER NOT NULL,
    processing_time_ms DOUBLE PRECISION NOT NULL,
    first_token_ms DOUBLE PRECISION,
    input_tokens BIGINT,
    output_tokens BIGINT,
    timestamp {time} NOT NULL DEFAULT {now}
);

-- One for each filter, in the order in which pages are read.
CREATE INDEX request_metrics_timestamp ON request_metrics (timestamp);
CREATE INDEX request_metrics_request ON request_metrics (request_id, id);
CREATE INDEX request_metrics_client ON request_metrics (client_id, id);
CREATE INDEX request_metrics_backend ON request_metrics (backend_id, id);
CREATE INDEX request_metrics_model ON request_metrics (model, id);
CREATE INDEX request_metrics_status ON request_metrics (status, id);
CREATE INDEX request_metrics_verdict ON request_metrics (verdict, id);
CREATE INDEX request_metrics_failed ON request_metrics (id) WHERE NOT success;

CREATE TABLE scaling_events (
    id {id},
    event_type TEXT NOT NULL CHECK (event_type IN ('scale_up', 'scale_down')),
    old_instances INTEGER NOT NULL,
    new_instances INTEGER NOT NULL,
    trigger_metrics {json},
    timestamp {time} NOT NULL DEFAULT {now}
);

CREATE INDEX scaling_events_timestamp ON scaling_events (timestamp);

-- How far each gateway has come, so that a batch whose end it never heard of is not written twice.
CREATE TABLE log_writers (
    writer TEXT PRIMARY KEY,
    batch BIGINT NOT NULL,
    seen {time} NOT NULL
);
