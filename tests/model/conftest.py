"""Show the details of failed assertions in the model's modules, as in tests."""

import pytest

pytest.register_assert_rewrite("model")
