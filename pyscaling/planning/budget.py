"""What a user can spend, in whatever unit: FLOPs, GPU-hours, money, time on devices. The tightest limit binds."""

import math
from dataclasses import dataclass

from pyscaling.accounting import parse_compute
from pyscaling.planning.device import Device
from pyscaling.planning.device import device as find_device
from pyscaling.units import check_positive, is_number, parse_time

UTILISATION = 0.4  # of the peak, as large dense transformers reach on H100s


@dataclass(frozen=True)
class Budget:
    """Limits on compute, each in FLOPs, and how FLOPs turn into time and money where devices and prices are known."""

    limits: dict[str, float]  # name of the argument -> FLOPs
    device: Device | None = None
    devices: float = 1.0
    utilisation: float = UTILISATION
    price_per_gpu_hour: float | None = None
    price_source: str = "as given"
    devices_given: bool = False  # else `devices` is 1, and a time on one says little

    @property
    def compute(self) -> float:
        """The tightest limit, in FLOPs; infinite without any."""
        return min(self.limits.values(), default=math.inf)

    @property
    def binding(self) -> str:
        return min(self.limits, key=self.limits.__getitem__) if self.limits else ""

    def gpu_hours(self, compute: float) -> float | None:
        return None if self.device is None else compute / (self.device.flops * self.utilisation) / 3600

    def seconds(self, compute: float) -> float | None:
        hours = self.gpu_hours(compute)
        return None if hours is None else 3600 * hours / self.devices

    def price(self, compute: float) -> float | None:
        hours = self.gpu_hours(compute)
        return None if hours is None or self.price_per_gpu_hour is None else hours * self.price_per_gpu_hour


def budget_of(
    compute: float | str | None = None,
    gpu_hours: float | None = None,
    dollars: float | None = None,
    time: str | None = None,
    device: str | Device | None = None,
    devices: float | None = None,
    utilisation: float | None = None,
    price_per_gpu_hour: float | None = None,
) -> Budget:
    """The limits that are given, in FLOPs.

    compute: FLOPs or a text with a unit ("1e21", "3 PF-days"). gpu_hours: of `device` at `utilisation` of its peak.
    dollars: at `price_per_gpu_hour`, by default the device's list price (planning.DEVICES). time: a text with a unit
    ("3 days", "72 h") on so many `devices`.
    Raises ValueError for what is negative, lacks a unit, or lacks what it needs to become FLOPs.
    """
    limits = {}
    if compute is not None:
        limits["compute"] = parse_compute(compute)
    found = find_device(device) if isinstance(device, str) else device
    for name, value in (
        ("gpu_hours", gpu_hours), ("dollars", dollars), ("devices", devices), ("price_per_gpu_hour", price_per_gpu_hour),
    ):  # fmt: skip
        if value is not None:
            check_positive(name, value)
    if utilisation is not None and not (is_number(utilisation) and 0 < utilisation <= 1):
        raise ValueError(
            f"utilisation must lie between 0 and 1, got {utilisation!r}; 0.4 is 40 % of the device's peak."
        )
    share = UTILISATION if utilisation is None else float(utilisation)
    spent = {"gpu_hours": gpu_hours, "dollars": dollars, "time": time, "devices": devices}
    for name, given in spent.items():
        if given is not None and found is None:
            raise ValueError(f'{name}={given!r} needs device=, such as "H100", to become FLOPs.')
    for name, value in (("utilisation", utilisation), ("price_per_gpu_hour", price_per_gpu_hour)):
        if value is not None and found is None:
            raise ValueError(f"{name}={value!r} says nothing without device=; give it, or leave {name} out.")
    source = "as given"
    if price_per_gpu_hour is None and found is not None and found.price_per_hour is not None:
        price_per_gpu_hour, source = found.price_per_hour, f"list price of {found.price_source}; change it"
    if dollars is not None and price_per_gpu_hour is None:
        raise ValueError(
            f"dollars={dollars!r} needs price_per_gpu_hour=, in the same money, to become GPU-hours: no list price of "
            f"{found.name if found is not None else 'the device'} is known here."
        )
    if time is not None and devices is None:
        raise ValueError(f"time={time!r} needs devices=, how many work at once.")
    if found is not None:
        rate = found.flops * share
        if gpu_hours is not None:
            limits["gpu_hours"] = 3600 * float(gpu_hours) * rate
        if dollars is not None and price_per_gpu_hour is not None:
            limits["dollars"] = 3600 * float(dollars) / float(price_per_gpu_hour) * rate
        if time is not None and devices is not None:
            limits["time"] = parse_time(time) * float(devices) * rate
    price = None if price_per_gpu_hour is None else float(price_per_gpu_hour)
    return Budget(limits, found, float(devices or 1), share, price, source, devices is not None)
