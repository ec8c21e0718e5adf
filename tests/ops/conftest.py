"""For the ops that have vector code on a CPU."""

import pytest

from fastdhm.ops import _extension


@pytest.fixture(params=["none", *(_extension.require("tests").simds() if _extension.available() else ())])
def simd(request):
    """One instruction set after the other, as far as this processor has them."""
    module = _extension.require("tests")
    best = module.simd()
    module.set_simd(request.param)
    yield request.param
    module.set_simd(best)
