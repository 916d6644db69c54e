"""Look settings of generation up, and count lengths on prompts as they were given."""

from __future__ import annotations

import copy
from typing import Any

from rcblib.records import ParameterError


class Settings:
    """Look generation settings up where `generate` does, and count lengths on the prompt as given."""

    def __init__(self, defaults: Any, generation_config: Any, arguments: dict[str, Any]):
        self.defaults, self.generation_config, self.arguments = defaults, generation_config, arguments

    def value(self, name: str) -> Any:
        """Return a setting: the argument's value, else the given config's, else the model's."""
        if name in self.arguments:
            return self.arguments[name]
        given = getattr(self.generation_config, name, None)
        return getattr(self.defaults, name, None) if given is None else given

    def check_max_length(self, n_prompt: int) -> None:
        """Raise where ``max_length`` leaves no room for an answer."""
        limit = self.value("max_length")
        if self.value("max_new_tokens") is None and limit is not None and limit <= n_prompt:
            raise ParameterError("max_length", limit, f"more than the {n_prompt} tokens of the prompt")

    def n_columns(self, n_left: int, n_given: int) -> int:
        """Count the columns that are cached in all, as far as lengths are set; the last token is not."""
        n_new, limit = self.value("max_new_tokens"), self.value("max_length")
        if n_new is None:
            n_new = 1 if limit is None else limit - n_given
        return n_left + n_new - 1

    def shortened(self, n_dropped: int) -> tuple[Any, dict[str, Any]]:
        """Return config and arguments whose lengths count a prompt that is shorter by `n_dropped`."""
        config, arguments = copy.deepcopy(self.generation_config), dict(self.arguments)
        for name, by_new_tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            length = self.value(name)
            if not length or self.value(by_new_tokens) is not None:
                continue
            length = max(length - n_dropped, 0)
            if config is None or name in arguments:
                arguments[name] = length
            else:
                setattr(config, name, length)
        return config, arguments
