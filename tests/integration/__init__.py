import pytest

pytest.register_assert_rewrite(f"{__name__}.shop")  # so that what its helpers assert is shown in full
