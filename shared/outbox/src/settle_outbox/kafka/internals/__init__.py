r"""Every use of a private part of kafka-python, by client.

The version is pinned exactly. Before the first client is made, `check` refuses another version, and
one that lacks a private part. It lists these parts, each with the test that fails when the part
works differently.

kafka-python 3.0.12 is changed in these ways:

- A batch that cannot be read raises `UnreadableBatchError`, which holds its bytes and its place.
  Unchanged, poll() raises a bare error once and then loops without end.
- A partition that the broker cannot serve raises `UnreadablePartitionError`, which names it.
- A batch is expanded while it is read, a record at a time (`record_stream`). A record that is too
  large is given with a `TooLarge` in place of its value. Unchanged, one small batch can take all
  memory.
- An answer to a fetch whose one batch is over the limit of answers is received without the batch
  (`fetch_response`), which raises `UnreadableBatchError`. Unchanged, the connection ends, and the
  same fetch is sent again without end.
- A poll gives records of about `consumer.POLL_MAX_BYTES` at most.
- Batches in the formats 0 and 1 are not read: without headers they hold no events.
- A header name that is not UTF-8 is read with ``\xff`` in place of the bytes that are no text.
  Unchanged, such a record counts as corrupt; other clients read it.
"""

from __future__ import annotations
