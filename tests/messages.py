"""Read the messages of errors."""


def one_line(error) -> str:
    """Return an error's text after checking that it is a single line."""
    text = str(error.value)
    assert "\n" not in text
    return text
