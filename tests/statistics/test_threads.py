"""The number of threads during an update, and the same sums with one and with several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nc_callbacks import ClassStatistics
from nc_callbacks.statistics import adding
from nc_callbacks.statistics.threads import one_thread


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_product_alone_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    norm, add = torch.linalg.vector_norm, adding.add_products

    def of_rows(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen["rows"] = torch.get_num_threads()
        return norm(x, *args, **kwargs)

    def of_products(total: Tensor, d: Tensor) -> None:
        seen["products"] = torch.get_num_threads()
        add(total, d)

    monkeypatch.setattr(torch.linalg, "vector_norm", of_rows)
    monkeypatch.setattr(adding, "add_products", of_products)
    statistics = ClassStatistics(2)
    statistics.update(torch.randn(600, 512), torch.arange(600) % 2)
    assert seen == {"rows": 1, "products": 2}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_they_are_put_back_after_an_error() -> None:
    def broken() -> None:
        with one_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("p", [40, 300, 600])
def test_sums_with_two_threads(p: int) -> None:
    generator = torch.Generator().manual_seed(p)
    y = torch.randint(3, (1_500,), generator=generator)
    x = 10 * torch.randn(3, p, generator=generator)[y] + torch.randn(1_500, p, generator=generator)
    statistics = ClassStatistics(3)
    for some, classes in zip(x.split(700), y.split(700), strict=True):
        statistics.update(some, classes)
    moments = statistics.compute()
    means = torch.stack([x[y == c].double().mean(0) for c in range(3)])
    deviations = x.double() - means[y]
    torch.testing.assert_close(moments.means, means, rtol=0, atol=1e-6)
    assert moments.within is not None
    torch.testing.assert_close(moments.within, deviations.T @ deviations / len(x), rtol=0, atol=1e-6)
