"""The texts that are valid in a header of an event, for publishers and consumers."""

from __future__ import annotations

import re

HEADER_MAX_LENGTH = 1000
# Control characters are excluded, because headers are written to logs and terminals.
HEADER_TEXT = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{HEADER_MAX_LENGTH}}}")
