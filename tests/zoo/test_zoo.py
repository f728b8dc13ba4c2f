"""Each row of the table: the classifier that is known, within 1e-3 of float64; or refused in a sentence."""

import re
import warnings

import pytest

from tests.zoo.measure import deviations, expected, logged
from tests.zoo.table import ROWS


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[f"{row.group}: {row.name}" for row in ROWS])
def test_right_or_refused(row):
    if row.needs:
        pytest.importorskip(row.needs)
    setup = row.make()
    assert all(f"{name}=" in row.remark for name in setup.arguments)
    if row.refused:
        with pytest.raises(ValueError, match=re.escape(row.refused)):
            logged(setup)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        head, found = logged(setup)
    ours = [str(warning.message) for warning in caught if warning.filename.find("nc_callbacks/") >= 0]
    assert [row.warns in text for text in ours] == [True] * bool(row.warns), ours
    assert head == setup.head
    far = {name: d for name, d in deviations(found, expected(setup)).items() if not d < 1e-3}
    assert not far, (far, found)
