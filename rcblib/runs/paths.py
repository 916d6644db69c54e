"""Read paths as people write them: ``~`` and ``$VARIABLES`` as a shell reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rcblib.records import ParameterError

_VARIABLE = re.compile(r"\$(?:\{[^}]*\}|[A-Za-z_]\w*)", re.ASCII)


def user_path(path: str | os.PathLike, parameter: str = "path") -> Path:
    """Return a path with ``~`` and environment variables replaced.

    Every function of the library that takes a path reads it by this one, so also ``Path("~/photos")`` means the folder
    at home. Relative paths stay relative. A dollar sign in the name of something that exists is part of its name.

    Parameters
    ----------
    path : path-like
        Of a file or folder that may not exist yet.
    parameter : str
        What an error calls it.

    Raises
    ------
    ParameterError
        If a variable is not set, or ``~name`` names no user: a folder of that very name would be made instead. Also if
        the system cannot look the path up, as it is too long or lies behind a folder that may not be read.
    """
    text = os.fspath(path)
    literal = Path(text)
    with_dollar = [place for place in (literal, *literal.parents) if "$" in place.name]
    if with_dollar and not os.path.lexists(os.path.expanduser(with_dollar[-1])):
        text = os.path.expandvars(text)
        if unset := _VARIABLE.search(text):
            raise ParameterError(parameter, str(path), f"a path whose variables are set; {unset[0]} is not")
    text = os.path.expanduser(text)
    home = text.split(os.sep, 1)[0]
    if home.startswith("~") and not os.path.lexists(home):
        raise ParameterError(parameter, str(path), f"a path; there is no user {home[1:]!r}")
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        # Too long, behind a folder that may not be read, a link in a circle, "\0".
        accepted = f"a path that can be looked up ({getattr(error, 'strerror', None) or error})"
        raise ParameterError(parameter, f"{text:.80}", accepted) from None
    return Path(text)
