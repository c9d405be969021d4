"""The model's modules say what differs, as tests do."""

import pytest

pytest.register_assert_rewrite("model")
