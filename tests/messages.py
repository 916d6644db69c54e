"""Read the messages of errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rcblib.records import ParameterError


def one_line(error) -> str:
    """Return an error's text after checking that it is a single line."""
    text = str(error.value)
    assert "\n" not in text
    return text


@contextmanager
def refused(message: str, kind: type[Exception] = ParameterError) -> Iterator[None]:
    """Expect an error of one line that matches."""
    with pytest.raises(kind, match=message) as error:
        yield
    one_line(error)
