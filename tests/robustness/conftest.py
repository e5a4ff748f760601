"""A server of forked processes for the tests of stopping and killing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.forked import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()
