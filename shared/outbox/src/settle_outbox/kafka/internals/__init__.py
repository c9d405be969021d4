r"""All uses of private parts of kafka-python.

The version is pinned exactly. Before the first client is made, `check` raises an error if another
version is installed or a private part is missing. It lists the private parts, each with a test that
fails if the part works differently.

The engine changes kafka-python 3.0.12 as follows ("unchanged": what happens without the change):

- A batch that cannot be read raises `UnreadableBatchError`, which has the batch's bytes and place.
  Unchanged, poll() raises a bare error once and then loops forever.
- A partition that the broker cannot serve raises `UnreadablePartitionError` with its name.
- A batch is decompressed one record at a time (`record_stream`). A record that is too large has a
  `TooLarge` as its value. Unchanged, one small batch can take all memory.
- A response to a fetch may exceed the limit of responses, because its first batch is too large. It
  is received without this batch (`fetch_response`), and `UnreadableBatchError` is raised.
  Unchanged, the connection ends, and the same fetch is sent again forever.
- A connection parses what it receives after `client.RECEIVE_BYTES` at most. Unchanged, it first
  receives all that the broker can send meanwhile, in the worst case a whole response.
- A join because of new partitions is repeated until it succeeds. If its poll ends earlier, the next
  poll takes the result. Unchanged, the join is forgotten in both cases, and then the consumer
  receives no records and sends no heartbeats.
- A poll returns records of about `consumer.POLL_MAX_BYTES` at most.
- Batches in the formats 0 and 1 are not read, because without headers they have no events.
- A header name that is not UTF-8 is read, with escapes such as ``\xff`` for the invalid bytes.
  Unchanged, such a record counts as corrupt, although other clients read it.
"""

from __future__ import annotations
