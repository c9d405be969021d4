--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: outbox_shard_count(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.outbox_shard_count() RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 16;


--
-- Name: FUNCTION outbox_shard_count(); Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON FUNCTION public.outbox_shard_count() IS 'How many shards the outbox has.';


--
-- Name: outbox_shard(text); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.outbox_shard(key text) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ((((('x'::text || "left"(md5(key), 8)))::bit(32))::bigint % (public.outbox_shard_count())::bigint))::integer;


--
-- Name: FUNCTION outbox_shard(key text); Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON FUNCTION public.outbox_shard(key text) IS 'The shard of a key: the first 32 bits of its MD5, unsigned, modulo the count of shards.';


--
-- Name: refuse_order_change(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.refuse_order_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'order % (%): a final status, and what identifies an order, never change',
        OLD.id, OLD.status
        USING ERRCODE = 'restrict_violation';
END
$$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: dead_letters; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dead_letters (
    id bigint NOT NULL,
    fingerprint bytea NOT NULL,
    event_id uuid,
    type text,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    timestamp_ms bigint,
    key bytea,
    value bytea,
    headers json NOT NULL,
    requestid text,
    reason text NOT NULL,
    detail text NOT NULL,
    parked_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: TABLE dead_letters; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.dead_letters IS 'Records that cannot be applied, whole, with the reason.';


--
-- Name: COLUMN dead_letters.fingerprint; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.dead_letters.fingerprint IS 'SHA-256 of the record and its place: one delivered again is not parked again.';


--
-- Name: COLUMN dead_letters.headers; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.dead_letters.headers IS 'In the order received: [name, text], or [name, {"base64": ...}] when it is not UTF-8.';


--
-- Name: dead_letters_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.dead_letters ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.dead_letters_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: idempotency_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_keys (
    caller text NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    status smallint,
    headers json,
    body bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_keys_answer_whole CHECK ((num_nulls(status, headers, body) = ANY (ARRAY[0, 3]))),
    CONSTRAINT idempotency_keys_key_length CHECK (((char_length(key) >= 1) AND (char_length(key) <= 255))),
    CONSTRAINT idempotency_keys_status_success CHECK (((status >= 200) AND (status <= 299)))
)
WITH (fillfactor='80', autovacuum_vacuum_scale_factor='0.05');


--
-- Name: TABLE idempotency_keys; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.idempotency_keys IS 'Requests that came with an Idempotency-Key, and their answers; written with their effect.';


--
-- Name: COLUMN idempotency_keys.fingerprint; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.idempotency_keys.fingerprint IS 'SHA-256 of the body''s meaning: the same key with another is refused.';


--
-- Name: COLUMN idempotency_keys.headers; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.idempotency_keys.headers IS 'Of the answer, in their order: [name, value].';


--
-- Name: inbox; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.inbox (
    id uuid NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    requestid text,
    outcome text NOT NULL,
    detail text,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inbox_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'skipped'::text, 'anomaly'::text, 'parked'::text])))
)
PARTITION BY RANGE (id);


--
-- Name: TABLE inbox; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.inbox IS 'The events received, by id: what is here is not applied again. Dropped by partition.';


--
-- Name: inbox_default; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.inbox_default (
    id uuid NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    requestid text,
    outcome text NOT NULL,
    detail text,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inbox_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'skipped'::text, 'anomaly'::text, 'parked'::text])))
);


--
-- Name: inbox_horizon; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.inbox_horizon (
    before uuid NOT NULL
);


--
-- Name: TABLE inbox_horizon; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.inbox_horizon IS 'Where the inbox begins: an older event may have been applied and forgotten, and is parked.';


--
-- Name: inbox_p20261128; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.inbox_p20261128 (
    id uuid NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    requestid text,
    outcome text NOT NULL,
    detail text,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inbox_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'skipped'::text, 'anomaly'::text, 'parked'::text])))
);


--
-- Name: inbox_p20261129; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.inbox_p20261129 (
    id uuid NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    requestid text,
    outcome text NOT NULL,
    detail text,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inbox_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'skipped'::text, 'anomaly'::text, 'parked'::text])))
);


--
-- Name: inbox_p20261130; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.inbox_p20261130 (
    id uuid NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    requestid text,
    outcome text NOT NULL,
    detail text,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inbox_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'skipped'::text, 'anomaly'::text, 'parked'::text])))
);


--
-- Name: inbox_p20261201; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.inbox_p20261201 (
    id uuid NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    requestid text,
    outcome text NOT NULL,
    detail text,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inbox_outcome_check CHECK ((outcome = ANY (ARRAY['applied'::text, 'skipped'::text, 'anomaly'::text, 'parked'::text])))
);


--
-- Name: orders; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.orders (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    amount bigint NOT NULL,
    description text NOT NULL,
    status text NOT NULL,
    failure_reason text,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    CONSTRAINT orders_amount_positive CHECK ((amount >= 1)),
    CONSTRAINT orders_description_length CHECK ((char_length(description) <= 10000)),
    CONSTRAINT orders_failure_reason_length CHECK (((char_length(failure_reason) >= 1) AND (char_length(failure_reason) <= 200))),
    CONSTRAINT orders_reason_of_failures CHECK (((status = 'failed'::text) = (failure_reason IS NOT NULL))),
    CONSTRAINT orders_status_known CHECK ((status = ANY (ARRAY['created'::text, 'success'::text, 'failed'::text]))),
    CONSTRAINT orders_user_id_not_nil CHECK ((user_id <> '00000000-0000-0000-0000-000000000000'::uuid))
);


--
-- Name: TABLE orders; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.orders IS 'Orders by a UUIDv7; amounts in minor units.';


--
-- Name: outbox; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    shard integer GENERATED ALWAYS AS (public.outbox_shard(aggregateid)) STORED NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    requestid text,
    traceparent text,
    created_at timestamp with time zone DEFAULT now() NOT NULL
)
PARTITION BY RANGE (id);


--
-- Name: TABLE outbox; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.outbox IS 'Events, inserted once and never updated; kept for replay, dropped by partition (a UTC day).';


--
-- Name: outbox_default; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_default (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    shard integer GENERATED ALWAYS AS (public.outbox_shard(aggregateid)) STORED NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    requestid text,
    traceparent text,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: outbox_p20261128; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_p20261128 (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    shard integer GENERATED ALWAYS AS (public.outbox_shard(aggregateid)) STORED NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    requestid text,
    traceparent text,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: outbox_p20261129; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_p20261129 (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    shard integer GENERATED ALWAYS AS (public.outbox_shard(aggregateid)) STORED NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    requestid text,
    traceparent text,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: outbox_p20261130; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_p20261130 (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    shard integer GENERATED ALWAYS AS (public.outbox_shard(aggregateid)) STORED NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    requestid text,
    traceparent text,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: outbox_p20261201; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_p20261201 (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    shard integer GENERATED ALWAYS AS (public.outbox_shard(aggregateid)) STORED NOT NULL,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    requestid text,
    traceparent text,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: outbox_pending; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_pending (
    shard integer NOT NULL,
    seq bigint NOT NULL,
    id uuid NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.0', autovacuum_vacuum_threshold='2000');


--
-- Name: TABLE outbox_pending; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.outbox_pending IS 'Events still to be sent: a row comes with its event and goes when it is acknowledged.';


--
-- Name: outbox_refused; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_refused (
    seq bigint NOT NULL,
    id uuid NOT NULL,
    reason text NOT NULL,
    refused_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: TABLE outbox_refused; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.outbox_refused IS 'Events that the broker will never take, such as one over its size limit.';


--
-- Name: outbox_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.outbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: outbox_shards; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_shards (
    shard integer NOT NULL
)
WITH (fillfactor='10');


--
-- Name: TABLE outbox_shards; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.outbox_shards IS 'A relay holds a shard by locking its row.';


--
-- Name: outbox_topics; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.outbox_topics (
    topic text NOT NULL,
    topic_id uuid NOT NULL,
    noted_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: TABLE outbox_topics; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.outbox_topics IS 'The broker''s id of each topic; another id means that the topic was lost, and is replayed.';


--
-- Name: inbox_default; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox ATTACH PARTITION public.inbox_default DEFAULT;


--
-- Name: inbox_p20261128; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox ATTACH PARTITION public.inbox_p20261128 FOR VALUES FROM ('01a21f73-9c00-0000-0000-000000000000') TO ('01a22499-f800-0000-0000-000000000000');


--
-- Name: inbox_p20261129; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox ATTACH PARTITION public.inbox_p20261129 FOR VALUES FROM ('01a22499-f800-0000-0000-000000000000') TO ('01a229c0-5400-0000-0000-000000000000');


--
-- Name: inbox_p20261130; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox ATTACH PARTITION public.inbox_p20261130 FOR VALUES FROM ('01a229c0-5400-0000-0000-000000000000') TO ('01a22ee6-b000-0000-0000-000000000000');


--
-- Name: inbox_p20261201; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox ATTACH PARTITION public.inbox_p20261201 FOR VALUES FROM ('01a22ee6-b000-0000-0000-000000000000') TO ('01a2340d-0c00-0000-0000-000000000000');


--
-- Name: outbox_default; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_default DEFAULT;


--
-- Name: outbox_p20261128; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_p20261128 FOR VALUES FROM ('01a21f73-9c00-0000-0000-000000000000') TO ('01a22499-f800-0000-0000-000000000000');


--
-- Name: outbox_p20261129; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_p20261129 FOR VALUES FROM ('01a22499-f800-0000-0000-000000000000') TO ('01a229c0-5400-0000-0000-000000000000');


--
-- Name: outbox_p20261130; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_p20261130 FOR VALUES FROM ('01a229c0-5400-0000-0000-000000000000') TO ('01a22ee6-b000-0000-0000-000000000000');


--
-- Name: outbox_p20261201; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox ATTACH PARTITION public.outbox_p20261201 FOR VALUES FROM ('01a22ee6-b000-0000-0000-000000000000') TO ('01a2340d-0c00-0000-0000-000000000000');


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.alembic_version VALUES ('0003');


--
-- Data for Name: dead_letters; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.dead_letters OVERRIDING SYSTEM VALUE VALUES (1, '\x3ccc2f8fde2bcc03107624a31f7233deb8e9abd78d9afd5fa6894d0e4d2aaf93', NULL, NULL, 'payments.events', 1, 0, 1795890239336, '\x6b6579', '\x7b7d', '[["ce_id", "01a22366-5758-770c-b620-c869ea046806"], ["ce_type", "payment.succeeded"], ["ce_source", "/test"], ["ce_specversion", "1.0"], ["content-type", "application/json"]]', NULL, 'invalid_data', 'The data does not fit payment.succeeded: {''order_id'': [''Missing data for required field.''], ''user_id'': [''Missing data for required field.''], ''amount'': [''Missing data for required field.'']}.', '2026-11-28 18:23:59.391671+00');


--
-- Data for Name: idempotency_keys; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/orders', '9c6fc6e9-6e1f-4bab-989b-8ad7a3560cb2', '\xa482db391a492e1cfcfe35b76b7dd6e1209298c896ee6424fb5288d5bf6b3eb7', 202, '[["Content-Type", "application/json"], ["Location", "/order/01a22366-4206-71c3-93b0-384070af4098"]]', '\x7b226d657373616765223a224f72646572206163636570746564227d0a', '2026-11-28 18:23:53.85964+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/orders', '36702b41-1f1e-4e56-813a-1647ec29bce1', '\xf2463e07ed73b7d04bec5ad928d8e7044e3de7d341df004cf556fef3cc31f269', 202, '[["Content-Type", "application/json"], ["Location", "/order/01a22366-422c-7764-9a3e-94e241cbb30c"]]', '\x7b226d657373616765223a224f72646572206163636570746564227d0a', '2026-11-28 18:23:53.898141+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/orders', '73e70699-f509-49db-8608-402a1baca0fc', '\x89698b1da7f8c6dd9cde482d816f3b8902b29b3ca75d261c5ca836eaa9b5e7c6', 202, '[["Content-Type", "application/json"], ["Location", "/order/01a22366-425f-7744-9627-c4d02a688b0c"]]', '\x7b226d657373616765223a224f72646572206163636570746564227d0a', '2026-11-28 18:23:53.936413+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/orders', 'd1bcbb2c-fb63-456d-916a-702b44fb5ef0', '\x2252e371f563aca4b1d3ceba7d9bafbf5e0d0d83b7c9a8d58ccb4b7e39108448', 202, '[["Content-Type", "application/json"], ["Location", "/order/01a22366-4272-77e8-b27f-989bcff8e716"]]', '\x7b226d657373616765223a224f72646572206163636570746564227d0a', '2026-11-28 18:23:53.963549+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/orders', 'e2ee498a-385d-4452-a3c0-f79ae61d9153', '\xfd83214c2cbe1bed6e78e8621635e94a88098e2438fc9748f02922f2df378ee0', 202, '[["Content-Type", "application/json"], ["Location", "/order/01a22366-5b76-7577-8ab3-e301bade715a"]]', '\x7b226d657373616765223a224f72646572206163636570746564227d0a', '2026-11-28 18:24:00.373536+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/orders', 'e4eef670-c70d-4d4c-8815-a3fbd73e2d70', '\xb70d17c4aeca77769551fcbe373f49f4733668555b5f3505b9fc464e552f6743', 202, '[["Content-Type", "application/json"], ["Location", "/order/01a22366-6acb-778e-aba1-ee54fe4ea48c"]]', '\x7b226d657373616765223a224f72646572206163636570746564227d0a', '2026-11-28 18:24:04.282644+00');


--
-- Data for Name: inbox_default; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: inbox_horizon; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.inbox_horizon VALUES ('01a15568-0d57-0000-0000-000000000000');


--
-- Data for Name: inbox_p20261128; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.inbox_p20261128 VALUES ('01a22366-5654-7666-89d1-9dd4032fbeed', 'payment.failed', '/payments', 'payments.events', 2, 0, 'b0f22eb8-f359-48bd-8701-15e63bab56f3', 'applied', NULL, '2026-11-28 18:23:59.17807+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-5654-7666-89d1-9dd54fe77dfc', 'payment.failed', '/payments', 'payments.events', 0, 0, '74679a30-e0e0-4419-9c9f-d6a85b141c6b', 'applied', NULL, '2026-11-28 18:23:59.17807+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-5654-7666-89d1-9dd6eb9d0735', 'payment.succeeded', '/payments', 'payments.events', 0, 1, '3267fb7b-c10a-4625-98af-1c29ad7de9d4', 'applied', NULL, '2026-11-28 18:23:59.17807+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-5654-7666-89d1-9dd7c11f1ac5', 'payment.succeeded', '/payments', 'payments.events', 3, 0, '4d230886-bd03-47d3-b70e-613fe6579ac4', 'applied', NULL, '2026-11-28 18:23:59.17807+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-5758-770c-b620-c86a8de8a801', 'unheard.of', '/test', 'payments.events', 1, 1, NULL, 'skipped', NULL, '2026-11-28 18:23:59.391671+00');


--
-- Data for Name: inbox_p20261129; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: inbox_p20261130; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: inbox_p20261201; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: orders; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.orders VALUES ('01a22366-425f-7744-9627-c4d02a688b0c', 'c7085427-0b8d-43ed-ab13-fab4df7a116c', 1, 'no money', 'failed', 'insufficient_funds', '2026-11-28 18:23:53.951172+00', '2026-11-28 18:23:59.191772+00');
INSERT INTO public.orders VALUES ('01a22366-4272-77e8-b27f-989bcff8e716', '496e1c4b-d8fa-42ed-8900-518a185166ac', 5, 'no account', 'failed', 'account_not_found', '2026-11-28 18:23:53.970828+00', '2026-11-28 18:23:59.191982+00');
INSERT INTO public.orders VALUES ('01a22366-4206-71c3-93b0-384070af4098', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 300, 'paid', 'success', NULL, '2026-11-28 18:23:53.862945+00', '2026-11-28 18:23:59.200976+00');
INSERT INTO public.orders VALUES ('01a22366-422c-7764-9a3e-94e241cbb30c', '30e783b7-3f1e-407b-820c-b899df659806', 1000, 'paid, the whole balance', 'success', NULL, '2026-11-28 18:23:53.900192+00', '2026-11-28 18:23:59.201121+00');
INSERT INTO public.orders VALUES ('01a22366-5b76-7577-8ab3-e301bade715a', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 200, 'charged, and the outcome is not sent yet', 'created', NULL, '2026-11-28 18:24:00.374292+00', '2026-11-28 18:24:00.374292+00');
INSERT INTO public.orders VALUES ('01a22366-6acb-778e-aba1-ee54fe4ea48c', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 100, 'not sent yet', 'created', NULL, '2026-11-28 18:24:04.299198+00', '2026-11-28 18:24:04.299198+00');


--
-- Data for Name: outbox_default; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: outbox_p20261128; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-4207-715a-9bd6-0a3342e2a7b7', 1, DEFAULT, 'orders', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 'order.created', '\x7b226f726465725f6964223a2230316132323336362d343230362d373163332d393362302d333834303730616634303938222c22757365725f6964223a2231623337643335382d353133362d346134332d386436622d376463613337646361326539222c22616d6f756e74223a3330302c22637265617465645f6174223a22323032362d31312d32385431383a32333a35332e3836323934355a227d', '4d230886-bd03-47d3-b70e-613fe6579ac4', NULL, '2026-11-28 18:23:53.85964+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-422c-7764-9a3e-94e3f48b49a7', 2, DEFAULT, 'orders', '30e783b7-3f1e-407b-820c-b899df659806', 'order.created', '\x7b226f726465725f6964223a2230316132323336362d343232632d373736342d396133652d393465323431636262333063222c22757365725f6964223a2233306537383362372d336631652d343037622d383230632d623839396466363539383036222c22616d6f756e74223a313030302c22637265617465645f6174223a22323032362d31312d32385431383a32333a35332e3930303139325a227d', '3267fb7b-c10a-4625-98af-1c29ad7de9d4', NULL, '2026-11-28 18:23:53.898141+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-425f-7744-9627-c4d10cbc65ad', 3, DEFAULT, 'orders', 'c7085427-0b8d-43ed-ab13-fab4df7a116c', 'order.created', '\x7b226f726465725f6964223a2230316132323336362d343235662d373734342d393632372d633464303261363838623063222c22757365725f6964223a2263373038353432372d306238642d343365642d616231332d666162346466376131313663222c22616d6f756e74223a312c22637265617465645f6174223a22323032362d31312d32385431383a32333a35332e3935313137325a227d', 'b0f22eb8-f359-48bd-8701-15e63bab56f3', NULL, '2026-11-28 18:23:53.936413+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-4272-77e8-b27f-989c752647fb', 4, DEFAULT, 'orders', '496e1c4b-d8fa-42ed-8900-518a185166ac', 'order.created', '\x7b226f726465725f6964223a2230316132323336362d343237322d373765382d623237662d393839626366663865373136222c22757365725f6964223a2234393665316334622d643866612d343265642d383930302d353138613138353136366163222c22616d6f756e74223a352c22637265617465645f6174223a22323032362d31312d32385431383a32333a35332e3937303832385a227d', '74679a30-e0e0-4419-9c9f-d6a85b141c6b', NULL, '2026-11-28 18:23:53.963549+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-5b76-7577-8ab3-e302888b4728', 5, DEFAULT, 'orders', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 'order.created', '\x7b226f726465725f6964223a2230316132323336362d356237362d373537372d386162332d653330316261646537313561222c22757365725f6964223a2231623337643335382d353133362d346134332d386436622d376463613337646361326539222c22616d6f756e74223a3230302c22637265617465645f6174223a22323032362d31312d32385431383a32343a30302e3337343239325a227d', 'e7c390ce-f2c2-4f5e-bcb3-d84247fedd76', NULL, '2026-11-28 18:24:00.373536+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-6acb-778e-aba1-ee55d4f93874', 6, DEFAULT, 'orders', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 'order.created', '\x7b226f726465725f6964223a2230316132323336362d366163622d373738652d616261312d656535346665346561343863222c22757365725f6964223a2231623337643335382d353133362d346134332d386436622d376463613337646361326539222c22616d6f756e74223a3130302c22637265617465645f6174223a22323032362d31312d32385431383a32343a30342e3239393139385a227d', '3a3a12c7-15b4-46fd-bc20-7a849ef7a03f', NULL, '2026-11-28 18:24:04.282644+00');


--
-- Data for Name: outbox_p20261129; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: outbox_p20261130; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: outbox_p20261201; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: outbox_pending; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.outbox_pending VALUES (13, 6, '01a22366-6acb-778e-aba1-ee55d4f93874');


--
-- Data for Name: outbox_refused; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.outbox_refused VALUES (1, '01a22366-4207-715a-9bd6-0a3342e2a7b7', 'MessageSizeTooLargeError: by hand', '2026-11-28 18:24:05.01657+00');


--
-- Data for Name: outbox_shards; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.outbox_shards VALUES (0);
INSERT INTO public.outbox_shards VALUES (1);
INSERT INTO public.outbox_shards VALUES (2);
INSERT INTO public.outbox_shards VALUES (3);
INSERT INTO public.outbox_shards VALUES (4);
INSERT INTO public.outbox_shards VALUES (5);
INSERT INTO public.outbox_shards VALUES (6);
INSERT INTO public.outbox_shards VALUES (7);
INSERT INTO public.outbox_shards VALUES (8);
INSERT INTO public.outbox_shards VALUES (9);
INSERT INTO public.outbox_shards VALUES (10);
INSERT INTO public.outbox_shards VALUES (11);
INSERT INTO public.outbox_shards VALUES (12);
INSERT INTO public.outbox_shards VALUES (13);
INSERT INTO public.outbox_shards VALUES (14);
INSERT INTO public.outbox_shards VALUES (15);


--
-- Data for Name: outbox_topics; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.outbox_topics VALUES ('orders.events', '01a22366-48be-7a02-9461-28ea13f2d55b', '2026-11-28 18:23:55.598415+00');


--
-- Name: dead_letters_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.dead_letters_id_seq', 1, true);


--
-- Name: outbox_seq_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.outbox_seq_seq', 6, true);


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: dead_letters dead_letters_fingerprint_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_fingerprint_key UNIQUE (fingerprint);


--
-- Name: dead_letters dead_letters_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);


--
-- Name: idempotency_keys idempotency_keys_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key, path, method, caller);


--
-- Name: inbox inbox_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox
    ADD CONSTRAINT inbox_pkey PRIMARY KEY (id);


--
-- Name: inbox_default inbox_default_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox_default
    ADD CONSTRAINT inbox_default_pkey PRIMARY KEY (id);


--
-- Name: inbox_horizon inbox_horizon_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox_horizon
    ADD CONSTRAINT inbox_horizon_pkey PRIMARY KEY (before);


--
-- Name: inbox_p20261128 inbox_p20261128_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox_p20261128
    ADD CONSTRAINT inbox_p20261128_pkey PRIMARY KEY (id);


--
-- Name: inbox_p20261129 inbox_p20261129_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox_p20261129
    ADD CONSTRAINT inbox_p20261129_pkey PRIMARY KEY (id);


--
-- Name: inbox_p20261130 inbox_p20261130_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox_p20261130
    ADD CONSTRAINT inbox_p20261130_pkey PRIMARY KEY (id);


--
-- Name: inbox_p20261201 inbox_p20261201_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.inbox_p20261201
    ADD CONSTRAINT inbox_p20261201_pkey PRIMARY KEY (id);


--
-- Name: orders orders_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (id);


--
-- Name: outbox outbox_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (id);


--
-- Name: outbox_default outbox_default_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_default
    ADD CONSTRAINT outbox_default_pkey PRIMARY KEY (id);


--
-- Name: outbox_p20261128 outbox_p20261128_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_p20261128
    ADD CONSTRAINT outbox_p20261128_pkey PRIMARY KEY (id);


--
-- Name: outbox_p20261129 outbox_p20261129_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_p20261129
    ADD CONSTRAINT outbox_p20261129_pkey PRIMARY KEY (id);


--
-- Name: outbox_p20261130 outbox_p20261130_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_p20261130
    ADD CONSTRAINT outbox_p20261130_pkey PRIMARY KEY (id);


--
-- Name: outbox_p20261201 outbox_p20261201_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_p20261201
    ADD CONSTRAINT outbox_p20261201_pkey PRIMARY KEY (id);


--
-- Name: outbox_pending outbox_pending_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_pending
    ADD CONSTRAINT outbox_pending_pkey PRIMARY KEY (shard, seq);


--
-- Name: outbox_refused outbox_refused_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_refused
    ADD CONSTRAINT outbox_refused_pkey PRIMARY KEY (seq);


--
-- Name: outbox_shards outbox_shards_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_shards
    ADD CONSTRAINT outbox_shards_pkey PRIMARY KEY (shard);


--
-- Name: outbox_topics outbox_topics_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.outbox_topics
    ADD CONSTRAINT outbox_topics_pkey PRIMARY KEY (topic);


--
-- Name: idempotency_keys_created_at; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idempotency_keys_created_at ON public.idempotency_keys USING btree (created_at);


--
-- Name: inbox_not_applied; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX inbox_not_applied ON ONLY public.inbox USING btree (received_at) WHERE (outcome <> 'applied'::text);


--
-- Name: inbox_default_received_at_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX inbox_default_received_at_idx ON public.inbox_default USING btree (received_at) WHERE (outcome <> 'applied'::text);


--
-- Name: inbox_p20261128_received_at_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX inbox_p20261128_received_at_idx ON public.inbox_p20261128 USING btree (received_at) WHERE (outcome <> 'applied'::text);


--
-- Name: inbox_p20261129_received_at_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX inbox_p20261129_received_at_idx ON public.inbox_p20261129 USING btree (received_at) WHERE (outcome <> 'applied'::text);


--
-- Name: inbox_p20261130_received_at_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX inbox_p20261130_received_at_idx ON public.inbox_p20261130 USING btree (received_at) WHERE (outcome <> 'applied'::text);


--
-- Name: inbox_p20261201_received_at_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX inbox_p20261201_received_at_idx ON public.inbox_p20261201 USING btree (received_at) WHERE (outcome <> 'applied'::text);


--
-- Name: orders_newest; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX orders_newest ON public.orders USING btree (created_at DESC, id DESC);


--
-- Name: orders_newest_of_status; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX orders_newest_of_status ON public.orders USING btree (status, created_at DESC, id DESC);


--
-- Name: orders_newest_of_user; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX orders_newest_of_user ON public.orders USING btree (user_id, created_at DESC, id DESC);


--
-- Name: inbox_default_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_pkey ATTACH PARTITION public.inbox_default_pkey;


--
-- Name: inbox_default_received_at_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_not_applied ATTACH PARTITION public.inbox_default_received_at_idx;


--
-- Name: inbox_p20261128_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_pkey ATTACH PARTITION public.inbox_p20261128_pkey;


--
-- Name: inbox_p20261128_received_at_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_not_applied ATTACH PARTITION public.inbox_p20261128_received_at_idx;


--
-- Name: inbox_p20261129_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_pkey ATTACH PARTITION public.inbox_p20261129_pkey;


--
-- Name: inbox_p20261129_received_at_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_not_applied ATTACH PARTITION public.inbox_p20261129_received_at_idx;


--
-- Name: inbox_p20261130_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_pkey ATTACH PARTITION public.inbox_p20261130_pkey;


--
-- Name: inbox_p20261130_received_at_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_not_applied ATTACH PARTITION public.inbox_p20261130_received_at_idx;


--
-- Name: inbox_p20261201_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_pkey ATTACH PARTITION public.inbox_p20261201_pkey;


--
-- Name: inbox_p20261201_received_at_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.inbox_not_applied ATTACH PARTITION public.inbox_p20261201_received_at_idx;


--
-- Name: outbox_default_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.outbox_pkey ATTACH PARTITION public.outbox_default_pkey;


--
-- Name: outbox_p20261128_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.outbox_pkey ATTACH PARTITION public.outbox_p20261128_pkey;


--
-- Name: outbox_p20261129_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.outbox_pkey ATTACH PARTITION public.outbox_p20261129_pkey;


--
-- Name: outbox_p20261130_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.outbox_pkey ATTACH PARTITION public.outbox_p20261130_pkey;


--
-- Name: outbox_p20261201_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.outbox_pkey ATTACH PARTITION public.outbox_p20261201_pkey;


--
-- Name: orders orders_final; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER orders_final BEFORE UPDATE ON public.orders FOR EACH ROW WHEN (((old.status <> 'created'::text) OR (((((old.id IS DISTINCT FROM new.id) OR (old.user_id IS DISTINCT FROM new.user_id)) OR (old.amount IS DISTINCT FROM new.amount)) OR (old.description IS DISTINCT FROM new.description)) OR (old.created_at IS DISTINCT FROM new.created_at)))) EXECUTE FUNCTION public.refuse_order_change();


--
-- PostgreSQL database dump complete
--


