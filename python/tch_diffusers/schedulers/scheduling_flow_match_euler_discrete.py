"""FlowMatchEulerDiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_flow_match_euler_discrete.py` at 0.42.1.
"""

from __future__ import annotations

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, register_to_config
from tch_diffusers.utils import Generators

__all__ = ["FlowMatchEulerDiscreteScheduler"]


class FlowMatchEulerDiscreteScheduler(SchedulerMixin):
    """Euler's method along the straight paths of flow matching (arXiv:2210.02747), shifted as in arXiv:2403.03206.

    >>> scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    >>> scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.0)
    >>> scheduler.timesteps.tolist()
    [1000.0, 750.0, 500.0, 250.0]
    """

    _timestep_dtype = torch.float32

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ) -> None: ...

    @property
    def shift(self) -> float:
        """How far noise levels are shifted where `mu` does not say."""
        return float(self.config.shift)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Lays out the timesteps of a run: a number of them, or just these noise levels or timesteps; `mu` shifts them."""
        if sigmas is not None and timesteps is not None:
            raise NotImplementedError("give either `sigmas` or `timesteps`, not both")
        custom = timesteps is not None or sigmas is not None
        steps = None if custom else num_inference_steps
        self._lay_out(device, steps=steps, sigmas=sigmas, timesteps=timesteps, mu=mu)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one. As in diffusers, `s_churn` and its kin are passed over."""
        if per_token_timesteps is not None:
            raise NotImplementedError("one timestep holds for all tokens: leave `per_token_timesteps` at None")
        return self._step(model_output, timestep, sample, return_dict, generator)

    def scale_noise(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`sample` with `noise` mixed in as it is at `timestep`, one for each sample."""
        noise = torch.randn_like(sample) if noise is None else noise
        return self.add_noise(sample, noise, torch.as_tensor(timestep))
