"""What a text in the header of an event may be: publishers and consumers agree on it."""

from __future__ import annotations

import re

HEADER_MAX_LENGTH = 1000
# Without control characters: headers go to logs and terminals.
HEADER_TEXT = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{HEADER_MAX_LENGTH}}}")
