"""The mutation tool."""

from __future__ import annotations

import pytest

from tools.mutation import AREAS, ROOT


@pytest.mark.parametrize("area", AREAS)
def test_the_modules_and_tests_of_an_area_exist(area: str) -> None:
    assert all(list(ROOT.glob(pattern)) for pattern in (*AREAS[area].modules, *AREAS[area].tests))
