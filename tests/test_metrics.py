"""The catalogue names each metric once, and all that the callbacks log."""

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.metrics import METRICS, SECTIONS, parse
from tests.callbacks.common import Classifier, loader, trainer


def logged(**settings):
    on_demand = settings.pop("on_demand", False)
    callbacks = [
        NeuralCollapse(**({"ood_loader": loader(3), "mse_weight_decay": 0.1} if on_demand else {}), **settings),
        WeightMeanAlignment(**({"a2_residual": True, "implicit": "full"} if on_demand else {}), **settings),
        QuasiInterpolation(**settings),
        FeatureSpectrum(**settings),
    ]
    fitting = trainer(*callbacks)
    fitting.fit(Classifier(), loader(), loader(1))
    return {key for key in fitting.callback_metrics if key.startswith("nc/")}


def test_metrics_are_those_that_are_logged():
    names = {parse(key).name for key in logged()}
    assert names == {name for name, metric in METRICS.items() if not metric.on_demand}
    assert {parse(key).name for key in logged(on_demand=True)} == set(METRICS)


def test_each_metric_is_in_one_panel():
    listed = [metric.name for section in SECTIONS for metric in section.metrics]
    assert len(listed) == len(set(listed))
    assert [section.title for section in SECTIONS] == ["NC1", "NC2", "NC3", "NC4", "W–M̄", "SQI", "Spectrum"]
