"""What all schedulers offer.

Mirrors `diffusers/schedulers/scheduling_utils.py` at 0.42.1. The arithmetic is the Rust library's; nothing that a step reads
lies on a device, so that a step never waits for one.
"""

from __future__ import annotations

import functools
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Sequence, TypeVar, Union

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.configuration_utils import ConfigMixin, from_json, to_json
from tch_diffusers.utils import BaseOutput, Generators, generators_of
from tch_diffusers.utils.hub import HUB_ARGUMENTS, local_folder

__all__ = ["SchedulerMixin", "SchedulerOutput", "Timestep", "register_to_config"]

Timestep = Union[int, float, torch.Tensor]
Self = TypeVar("Self", bound="SchedulerMixin")

_CLASSES: list[type[SchedulerMixin]] = []


@dataclass(eq=False)
class SchedulerOutput(BaseOutput):
    """What a step gives: the sample at the next timestep and, from the schedulers that tell, the noise-free one."""

    prev_sample: torch.Tensor
    pred_original_sample: Optional[torch.Tensor] = None


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Builds the scheduler of the options that `__init__` is given; those it is not given are remembered as defaults."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def build(self: SchedulerMixin, *args: Any, **kwargs: Any) -> None:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        del given["self"]
        older = given.pop("kwargs", {})
        given.update({name: value for name, value in older.items() if name in self._deprecated_kwargs})
        self._build({key: value for key, value in given.items() if value is not None})

    return build


class SchedulerMixin(ConfigMixin):
    """A noise schedule and a solver for it."""

    config_name = "scheduler_config.json"
    order = 1
    _deprecated_kwargs: list[str] = []
    _timestep_dtype = torch.int64
    _core: _tch_diffusers.Scheduler

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            _CLASSES.append(cls)

    def _build(self, config: dict[str, Any]) -> None:
        self._core = _tch_diffusers.Scheduler.build(self._class(), to_json(config))
        options = from_json(self._core.config())
        if not options.get("_use_default_values"):
            options.pop("_use_default_values", None)
        self.register_to_config(**options)
        self.num_inference_steps: int | None = None
        train = int(self.config.num_train_timesteps)
        self.timesteps = torch.arange(train - 1, -1, -1).to(self._timestep_dtype)

    def reconfigure(self, **options: Any) -> None:
        """Changes options of this very scheduler, which starts anew."""
        config = {key: value for key, value in self.config.items() if key != "_use_default_values"}
        self._build({**config, **options})

    @classmethod
    def _class(cls) -> str:
        """The name of the class that the scheduler is, or is derived from."""
        return next(base.__name__ for base in cls.__mro__ if base.__module__.startswith("tch_diffusers."))

    @classmethod
    def from_config(cls: type[Self], config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler of a configuration, which may be another scheduler's; `kwargs` come before it.

        >>> from tch_diffusers import DDIMScheduler, UniPCMultistepScheduler
        >>> UniPCMultistepScheduler.from_config(DDIMScheduler(beta_end=0.012).config).config.beta_end
        0.012
        """
        if not isinstance(config, dict):
            raise ValueError(f"`config` has to be a dictionary, not {type(config).__name__}: read files by `from_pretrained`")
        known = {*inspect.signature(cls.__init__).parameters, *cls._deprecated_kwargs} - {"self", "kwargs"}
        options = {key: value for key, value in kwargs.items() if key in known}
        merged = {**config, **options}
        defaults = [name for name in merged.get("_use_default_values", []) if name not in options]
        if "_use_default_values" in merged:
            merged["_use_default_values"] = defaults
        scheduler = cls.__new__(cls)
        scheduler._build(merged)
        unused = {key: value for key, value in kwargs.items() if key not in known}
        return (scheduler, unused) if return_unused_kwargs else scheduler

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The scheduler that was saved in a folder, or in its `subfolder`."""
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        folder = local_folder(pretrained_model_name_or_path, subfolder, **hub) / (subfolder or "")
        return cls.from_config(from_json(_tch_diffusers.Scheduler.load_config(folder)), return_unused_kwargs, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `scheduler_config.json` to a folder."""
        if push_to_hub:
            raise NotImplementedError("nothing is sent to the Hub: save to a folder and upload that")
        self._core.save(Path(save_directory))

    def save_config(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """As `save_pretrained`."""
        self.save_pretrained(save_directory, push_to_hub, **kwargs)

    @property
    def compatibles(self) -> list[type[SchedulerMixin]]:
        """The schedulers that can take over this one's configuration."""
        return list(_CLASSES)

    @property
    def init_noise_sigma(self) -> float | torch.Tensor:
        """What pure noise of variance 1 is multiplied by to start a run."""
        return self._core.init_noise_sigma

    @property
    def betas(self) -> torch.Tensor:
        """The variance that each timestep of the training adds."""
        return torch.tensor(self._core.betas())

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """The share of signal at each timestep of the training."""
        return torch.tensor(self._core.alphas_cumprod())

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels of the run, one more than timesteps."""
        sigmas = self._core.sigmas
        if not sigmas:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute 'sigmas'")
        return torch.tensor(sigmas)

    def _lay_out(self, device: torch.device | str | None, **run: Any) -> None:
        given: dict[str, Any] = {key: value for key, value in run.items() if value is not None}
        custom: dict[str, Any] = {key: _numbers(given[key]) for key in ("timesteps", "sigmas") if key in given}
        self._core.set_timesteps(**{**given, **custom})
        self._take_timesteps(device)
        self.num_inference_steps = given.get("steps") or len(self.timesteps)

    def _take_timesteps(self, device: torch.device | str | None) -> None:
        steps = torch.tensor(self._core.timesteps, dtype=torch.float64)
        self.timesteps = steps.to(self._timestep_dtype).to(device or "cpu")

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Starts the run at its `begin_index`-th timestep."""
        self._core.set_begin_index(begin_index)

    def scale_model_input(self, sample: torch.Tensor, timestep: Timestep | None = None) -> torch.Tensor:
        """The sample as the model wants to see it at `timestep`."""
        return self._core.scale_model_input(sample, float(timestep) if timestep is not None else 0.0)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`original_samples` with `noise` mixed in as it is at `timesteps`, one for each sample."""
        return self._core.add_noise(original_samples, noise, _numbers(timesteps))

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The velocity that a model of `prediction_type` v_prediction is trained to predict."""
        return self._core.get_velocity(sample, noise, _numbers(timesteps))

    def _step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        return_dict: bool,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        **options: Any,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        told = {
            "eta": 0.0,
            "use_clipped_model_output": False,
            "s_churn": 0.0,
            "s_tmin": 0.0,
            "s_tmax": float("inf"),
            "s_noise": 1.0,
            "order": None,
            "generators": generators_of(generator),
            "variance_noise": variance_noise,
            **options,
        }
        prev_sample, pred_original_sample = self._core.step(model_output, float(timestep), sample, told)
        output = SchedulerOutput(prev_sample, pred_original_sample)
        return output if return_dict else output.to_tuple()

    def _or_last(self, timestep: Timestep) -> Timestep:
        """`timestep`, or the run's last one if it is none of the run's, as these schedulers have it in diffusers."""
        return timestep if float(timestep) in self._core.timesteps else self.timesteps[-1]

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.config.items() if not key.startswith("_"))
        return f"{type(self).__name__}({options})"


def _numbers(timesteps: torch.Tensor | Sequence[float] | float) -> list[float]:
    return [float(t) for t in torch.as_tensor(timesteps).flatten().tolist()]
