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
-- Name: refuse_change(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: accounts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.accounts (
    id bigint NOT NULL,
    user_id uuid,
    name text,
    balance bigint,
    CONSTRAINT accounts_balance_not_negative CHECK ((balance >= 0)),
    CONSTRAINT accounts_balance_of_users CHECK (((balance IS NULL) = (user_id IS NULL))),
    CONSTRAINT accounts_user_id_not_nil CHECK ((user_id <> '00000000-0000-0000-0000-000000000000'::uuid)),
    CONSTRAINT accounts_user_or_system CHECK ((num_nonnulls(user_id, name) = 1))
);


--
-- Name: TABLE accounts; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.accounts IS 'Of users, and two of the system: deposits come from world, charges go to sales.';


--
-- Name: COLUMN accounts.balance; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.accounts.balance IS 'The sum of the account''s transfers, in minor units; system accounts store none.';


--
-- Name: accounts_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.accounts ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.accounts_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


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
-- Name: payments; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.payments (
    order_id uuid NOT NULL,
    user_id uuid NOT NULL,
    amount bigint NOT NULL,
    status text NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT payments_amount_positive CHECK ((amount > 0)),
    CONSTRAINT payments_reason_of_failures CHECK (((status = 'failed'::text) = (reason IS NOT NULL))),
    CONSTRAINT payments_status_known CHECK ((status = ANY (ARRAY['succeeded'::text, 'failed'::text])))
);


--
-- Name: TABLE payments; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.payments IS 'What became of each order, for good: none is charged twice or revived. Append-only.';


--
-- Name: transfers; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.transfers (
    id bigint NOT NULL,
    from_account_id bigint NOT NULL,
    to_account_id bigint NOT NULL,
    amount bigint NOT NULL,
    kind text NOT NULL,
    order_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT transfers_amount_positive CHECK ((amount > 0)),
    CONSTRAINT transfers_between_two CHECK ((from_account_id <> to_account_id)),
    CONSTRAINT transfers_kind_known CHECK ((kind = ANY (ARRAY['deposit'::text, 'charge'::text]))),
    CONSTRAINT transfers_order_of_charges CHECK (((kind = 'charge'::text) = (order_id IS NOT NULL)))
);


--
-- Name: TABLE transfers; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.transfers IS 'The ledger: each row moves an amount from one account to another. Append-only.';


--
-- Name: transfers_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.transfers ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.transfers_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


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
-- Data for Name: accounts; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.accounts OVERRIDING SYSTEM VALUE VALUES (1, NULL, 'world', NULL);
INSERT INTO public.accounts OVERRIDING SYSTEM VALUE VALUES (2, NULL, 'sales', NULL);
INSERT INTO public.accounts OVERRIDING SYSTEM VALUE VALUES (5, 'c7085427-0b8d-43ed-ab13-fab4df7a116c', NULL, 0);
INSERT INTO public.accounts OVERRIDING SYSTEM VALUE VALUES (4, '30e783b7-3f1e-407b-820c-b899df659806', NULL, 0);
INSERT INTO public.accounts OVERRIDING SYSTEM VALUE VALUES (3, '1b37d358-5136-4a43-8d6b-7dca37dca2e9', NULL, 500);


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.alembic_version VALUES ('0003');


--
-- Data for Name: dead_letters; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.dead_letters OVERRIDING SYSTEM VALUE VALUES (1, '\x4d269a4fd9aca520fc37de8f7f52f8b6bcb0dc8079edc589d6ba03017402eb48', NULL, NULL, 'orders.events', 1, 1, 1795890239312, '\x6b6579', '\x7b7d', '[["ce_id", "01a22366-573c-752a-9ea4-5618ac56acaf"], ["ce_type", "order.created"], ["ce_source", "/test"], ["ce_specversion", "1.0"], ["content-type", "application/json"]]', NULL, 'invalid_data', 'The data does not fit order.created: {''order_id'': [''Missing data for required field.''], ''user_id'': [''Missing data for required field.''], ''amount'': [''Missing data for required field.'']}.', '2026-11-28 18:23:59.325642+00');


--
-- Data for Name: idempotency_keys; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/accounts', '63f476ac-7ade-44de-8a81-9baa623a79e7', '\x5fa2ed1b3dd10a1ce67743277d006e602c229797f762b3473b9676a67936442f', 201, '[["Content-Type", "application/json"]]', '\x7b226d657373616765223a224163636f756e742063726561746564227d0a', '2026-11-28 18:23:53.410555+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/accounts', '340d1eec-6d20-4b17-ae4f-7c67a1892b5c', '\x1f83aea67b5befb31a235ac5e156e4fcfd75892b83934450b8c390ae841bc367', 201, '[["Content-Type", "application/json"]]', '\x7b226d657373616765223a224163636f756e742063726561746564227d0a', '2026-11-28 18:23:53.44234+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/accounts', 'ea301766-66b6-4e1d-8a3b-d84e54c8fee3', '\xb6cf79e5466f85059b774b365931d4392cac628496201bdce800da0978f6bdc4', 201, '[["Content-Type", "application/json"]]', '\x7b226d657373616765223a224163636f756e742063726561746564227d0a', '2026-11-28 18:23:53.464234+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/accounts/1b37d358-5136-4a43-8d6b-7dca37dca2e9/deposit', '01fdb86e-132e-45c9-8874-bbe3ca27a798', '\x612612d208fb618eb2b007d2a7f8d7a1cfb511532389298f1cc33322c3094bcc', 200, '[["Content-Type", "application/json"]]', '\x7b226d657373616765223a2242616c616e636520726566696c6c6564227d0a', '2026-11-28 18:23:53.494771+00');
INSERT INTO public.idempotency_keys VALUES ('anonymous', 'POST', '/accounts/30e783b7-3f1e-407b-820c-b899df659806/deposit', '64f66f1c-001b-4a42-86e3-d0cfbd375c3e', '\x612612d208fb618eb2b007d2a7f8d7a1cfb511532389298f1cc33322c3094bcc', 200, '[["Content-Type", "application/json"]]', '\x7b226d657373616765223a2242616c616e636520726566696c6c6564227d0a', '2026-11-28 18:23:53.528726+00');


--
-- Data for Name: inbox_default; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: inbox_horizon; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.inbox_horizon VALUES ('01a15568-0ad8-0000-0000-000000000000');


--
-- Data for Name: inbox_p20261128; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.inbox_p20261128 VALUES ('01a22366-4207-715a-9bd6-0a3342e2a7b7', 'order.created', '/orders', 'orders.events', 4, 0, '4d230886-bd03-47d3-b70e-613fe6579ac4', 'applied', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-422c-7764-9a3e-94e3f48b49a7', 'order.created', '/orders', 'orders.events', 2, 0, '3267fb7b-c10a-4625-98af-1c29ad7de9d4', 'applied', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-425f-7744-9627-c4d10cbc65ad', 'order.created', '/orders', 'orders.events', 5, 0, 'b0f22eb8-f359-48bd-8701-15e63bab56f3', 'applied', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-4272-77e8-b27f-989c752647fb', 'order.created', '/orders', 'orders.events', 1, 0, '74679a30-e0e0-4419-9c9f-d6a85b141c6b', 'applied', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.inbox_p20261128 VALUES ('01a22366-5b76-7577-8ab3-e302888b4728', 'order.created', '/orders', 'orders.events', 4, 1, 'e7c390ce-f2c2-4f5e-bcb3-d84247fedd76', 'applied', NULL, '2026-11-28 18:24:03.724171+00');


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
-- Data for Name: outbox_default; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: outbox_p20261128; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-5654-7666-89d1-9dd4032fbeed', 1, DEFAULT, 'payments', '01a22366-425f-7744-9627-c4d02a688b0c', 'payment.failed', '\x7b226f726465725f6964223a2230316132323336362d343235662d373734342d393632372d633464303261363838623063222c22757365725f6964223a2263373038353432372d306238642d343365642d616231332d666162346466376131313663222c22616d6f756e74223a312c22726561736f6e223a22696e73756666696369656e745f66756e6473227d', 'b0f22eb8-f359-48bd-8701-15e63bab56f3', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-5654-7666-89d1-9dd54fe77dfc', 2, DEFAULT, 'payments', '01a22366-4272-77e8-b27f-989bcff8e716', 'payment.failed', '\x7b226f726465725f6964223a2230316132323336362d343237322d373765382d623237662d393839626366663865373136222c22757365725f6964223a2234393665316334622d643866612d343265642d383930302d353138613138353136366163222c22616d6f756e74223a352c22726561736f6e223a226163636f756e745f6e6f745f666f756e64227d', '74679a30-e0e0-4419-9c9f-d6a85b141c6b', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-5654-7666-89d1-9dd6eb9d0735', 3, DEFAULT, 'payments', '01a22366-422c-7764-9a3e-94e241cbb30c', 'payment.succeeded', '\x7b226f726465725f6964223a2230316132323336362d343232632d373736342d396133652d393465323431636262333063222c22757365725f6964223a2233306537383362372d336631652d343037622d383230632d623839396466363539383036222c22616d6f756e74223a313030302c2262616c616e6365223a307d', '3267fb7b-c10a-4625-98af-1c29ad7de9d4', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-5654-7666-89d1-9dd7c11f1ac5', 4, DEFAULT, 'payments', '01a22366-4206-71c3-93b0-384070af4098', 'payment.succeeded', '\x7b226f726465725f6964223a2230316132323336362d343230362d373163332d393362302d333834303730616634303938222c22757365725f6964223a2231623337643335382d353133362d346134332d386436622d376463613337646361326539222c22616d6f756e74223a3330302c2262616c616e6365223a3730307d', '4d230886-bd03-47d3-b70e-613fe6579ac4', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.outbox_p20261128 OVERRIDING SYSTEM VALUE VALUES ('01a22366-6894-764b-97b3-703d024d7b20', 5, DEFAULT, 'payments', '01a22366-5b76-7577-8ab3-e301bade715a', 'payment.succeeded', '\x7b226f726465725f6964223a2230316132323336362d356237362d373537372d386162332d653330316261646537313561222c22757365725f6964223a2231623337643335382d353133362d346134332d386436622d376463613337646361326539222c22616d6f756e74223a3230302c2262616c616e6365223a3530307d', 'e7c390ce-f2c2-4f5e-bcb3-d84247fedd76', NULL, '2026-11-28 18:24:03.724171+00');


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

INSERT INTO public.outbox_pending VALUES (4, 5, '01a22366-6894-764b-97b3-703d024d7b20');


--
-- Data for Name: outbox_refused; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.outbox_refused VALUES (1, '01a22366-5654-7666-89d1-9dd4032fbeed', 'MessageSizeTooLargeError: by hand', '2026-11-28 18:24:04.340116+00');


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

INSERT INTO public.outbox_topics VALUES ('payments.events', '01a22366-48cc-7590-badc-dc18faa02e16', '2026-11-28 18:23:55.619905+00');


--
-- Data for Name: payments; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.payments VALUES ('01a22366-425f-7744-9627-c4d02a688b0c', 'c7085427-0b8d-43ed-ab13-fab4df7a116c', 1, 'failed', 'insufficient_funds', '2026-11-28 18:23:58.998251+00');
INSERT INTO public.payments VALUES ('01a22366-4272-77e8-b27f-989bcff8e716', '496e1c4b-d8fa-42ed-8900-518a185166ac', 5, 'failed', 'account_not_found', '2026-11-28 18:23:58.998251+00');
INSERT INTO public.payments VALUES ('01a22366-422c-7764-9a3e-94e241cbb30c', '30e783b7-3f1e-407b-820c-b899df659806', 1000, 'succeeded', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.payments VALUES ('01a22366-4206-71c3-93b0-384070af4098', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 300, 'succeeded', NULL, '2026-11-28 18:23:58.998251+00');
INSERT INTO public.payments VALUES ('01a22366-5b76-7577-8ab3-e301bade715a', '1b37d358-5136-4a43-8d6b-7dca37dca2e9', 200, 'succeeded', NULL, '2026-11-28 18:24:03.724171+00');


--
-- Data for Name: transfers; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.transfers OVERRIDING SYSTEM VALUE VALUES (1, 1, 3, 1000, 'deposit', NULL, '2026-11-28 18:23:53.494771+00');
INSERT INTO public.transfers OVERRIDING SYSTEM VALUE VALUES (2, 1, 4, 1000, 'deposit', NULL, '2026-11-28 18:23:53.528726+00');
INSERT INTO public.transfers OVERRIDING SYSTEM VALUE VALUES (3, 4, 2, 1000, 'charge', '01a22366-422c-7764-9a3e-94e241cbb30c', '2026-11-28 18:23:58.998251+00');
INSERT INTO public.transfers OVERRIDING SYSTEM VALUE VALUES (4, 3, 2, 300, 'charge', '01a22366-4206-71c3-93b0-384070af4098', '2026-11-28 18:23:58.998251+00');
INSERT INTO public.transfers OVERRIDING SYSTEM VALUE VALUES (5, 3, 2, 200, 'charge', '01a22366-5b76-7577-8ab3-e301bade715a', '2026-11-28 18:24:03.724171+00');


--
-- Name: accounts_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.accounts_id_seq', 5, true);


--
-- Name: dead_letters_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.dead_letters_id_seq', 1, true);


--
-- Name: outbox_seq_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.outbox_seq_seq', 5, true);


--
-- Name: transfers_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.transfers_id_seq', 5, true);


--
-- Name: accounts accounts_name_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_name_key UNIQUE (name);


--
-- Name: accounts accounts_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (id);


--
-- Name: accounts accounts_user_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_user_id_key UNIQUE (user_id);


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
-- Name: payments payments_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_pkey PRIMARY KEY (order_id);


--
-- Name: transfers transfers_order_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_order_id_key UNIQUE (order_id);


--
-- Name: transfers transfers_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_pkey PRIMARY KEY (id);


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
-- Name: transfers_charges_of_account; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX transfers_charges_of_account ON public.transfers USING btree (from_account_id, id) WHERE (kind = 'charge'::text);


--
-- Name: transfers_deposits_of_account; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX transfers_deposits_of_account ON public.transfers USING btree (to_account_id, id) WHERE (kind = 'deposit'::text);


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
-- Name: payments payments_append_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER payments_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.payments FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();


--
-- Name: transfers transfers_append_only; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER transfers_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.transfers FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();


--
-- Name: transfers transfers_from_account_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_from_account_id_fkey FOREIGN KEY (from_account_id) REFERENCES public.accounts(id);


--
-- Name: transfers transfers_to_account_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_to_account_id_fkey FOREIGN KEY (to_account_id) REFERENCES public.accounts(id);


--
-- PostgreSQL database dump complete
--


