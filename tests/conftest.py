"""Fixtures shared by the tests: sections of params.yaml with some values changed, tiny data."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from pydantic import BaseModel

import qnet.fused
from qnet.data import DatasetInfo, Split
from qnet.params import ActivationsParams, FpParams, QuantizedTrainingParams, load_params
from tests.tiny import INFO, split

ROOT = Path(__file__).parent.parent
Section = TypeVar("Section", bound=BaseModel)

LONG = ("test_readme.py", "test_pipeline.py", "test_distributed.py", "test_benchmarks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no process is left with them at the end."""
    items.sort(key=lambda item: (*LONG, item.path.name).index(item.path.name))


# The same examples in each run; --hypothesis-profile=default looks for new ones.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,  # a busy machine must not cause failures
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Start each test with the same random numbers, whichever ran before, and restore process-wide
    settings afterwards."""
    torch.manual_seed(0)
    compiled, threads = qnet.fused.uses_compiled(), torch.get_num_threads()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    qnet.fused.use_compiled(compiled)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(scope="session")
def fp_params() -> Callable[..., FpParams]:
    """The section `fp` of the project's params.yaml, with these values changed."""
    return _changed(load_params(ROOT / "params.yaml").fp)


@pytest.fixture(scope="session")
def weights_params() -> Callable[..., QuantizedTrainingParams]:
    """The section `weights` of the project's params.yaml, with these values changed."""
    return _changed(load_params(ROOT / "params.yaml").weights)


@pytest.fixture(scope="session")
def activations_params() -> Callable[..., ActivationsParams]:
    """The section `activations` of the project's params.yaml, with these values changed."""
    return _changed(load_params(ROOT / "params.yaml").activations)


def _changed(section: Section) -> Callable[..., Section]:
    def with_values(**changes: object) -> Section:
        assert changes.keys() <= type(section).model_fields.keys()
        return section.model_copy(update=changes)

    return with_values


@pytest.fixture
def tiny_info() -> DatasetInfo:
    """Data set of 3 classes, 8 × 8 pixels, one channel."""
    return INFO


@pytest.fixture
def tiny_split() -> Callable[[int, int], Split]:
    """`count` noise images on which a bright band marks the class."""
    return split
