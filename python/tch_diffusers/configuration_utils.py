"""Configurations that can be read by attribute, saved and loaded.

Mirrors `diffusers/configuration_utils.py` at 0.42.1.
"""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from typing import Any, NoReturn

__all__ = ["ConfigMixin", "FrozenDict", "from_json", "to_json"]

_INFINITIES = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_SPELLED = {value: name for name, value in _INFINITIES.items() if value == value}


class FrozenDict(OrderedDict):
    """A dictionary whose values are attributes as well, and that cannot be changed.

    >>> config = FrozenDict(sample_size=64)
    >>> config.sample_size, config["sample_size"]
    (64, 64)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__.update(self)
        self.__dict__["_frozen"] = True

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the configuration has no `{name}`")

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be changed: copy it with dict(...)")

    __delitem__ = setdefault = pop = update = clear = popitem = __setattr__ = _refuse  # type: ignore[assignment]

    def __setitem__(self, key: str, value: Any) -> None:
        if "_frozen" in self.__dict__:
            self._refuse()
        super().__setitem__(key, value)

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)


def to_json(config: dict[str, Any]) -> str:
    """JSON as the extension reads it: infinities as text, arrays as lists, dtypes by name."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and value in _SPELLED:
            return _SPELLED[value]
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        if hasattr(value, "tolist"):
            return plain(value.tolist())
        return value

    return json.dumps(plain(dict(config)), default=str)


def from_json(text: str) -> dict[str, Any]:
    """The configuration that the extension wrote."""

    def special(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: _INFINITIES.get(value, value) if isinstance(value, str) else value for key, value in pairs}

    loaded: dict[str, Any] = json.loads(text, object_pairs_hook=special)
    return loaded


class ConfigMixin:
    """Whatever has a configuration."""

    config_name = "config.json"

    @property
    def config(self) -> FrozenDict:
        """The configuration, read by key or by attribute."""
        config: FrozenDict = self.__dict__["_internal_dict"]
        return config

    def register_to_config(self, **values: Any) -> None:
        """Adds values to the configuration, or changes some."""
        before = self.__dict__.get("_internal_dict", {})
        self.__dict__["_internal_dict"] = FrozenDict({**before, **values})

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("_internal_dict", {})
        if name in config and not name.startswith("_"):
            message = f"`{name}` is an option of the configuration: use `config.{name}`"
            warnings.warn(message, FutureWarning, stacklevel=2)
            return config[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
