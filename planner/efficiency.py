"""Achieved shares of peak, with where they come from and how far off they have been.

Three origins, best first: *measured* on the user's machine (`planner.measured`), *published* (fitted to serving measurements
that others made, ``efficiencies/serving.toml``) and *generic* (typical of the architecture, ``efficiencies/generic.toml``).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from planner.gpu import GpuSpec
from planner.roofline import Shares
from planner.row import Flag, Maybe, Positive, Row, Source, Text
from planner.setup import Setup
from planner.usage import Usage

Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0, lt=1)]
Bounds = tuple[float, float]
MICRO = 1e-6

_FOLDER = Path(__file__).parent / "efficiencies"


class Architecture(Row):
    """Achieved shares of peak for one architecture, from static batches and single kernels.

    Attributes
    ----------
    interval
        Factors on the expected time of a decode step between which 80 % of measurements are meant to lie.
    points
        Measurements behind the row; 0 for the default, which is a spread over architectures.
    held_out, coverage
        Decode measurements that the fit did not use, and the share of them that the interval held; 0 where nobody measured.
    overlaps
        Whether sums over devices run beside the products that feed them, so that short ones go at the link's rate too.
    caveat
        Kinds of them that it held fewer of.
    basis
        What was measured and how the row was fitted and checked.
    """

    name: Text
    memory: Share
    compute: Share
    link: Share
    launch_s: Seconds
    interval: tuple[Positive, Positive]
    points: Maybe
    held_out: Maybe = 0
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.0
    overlaps: Flag = False
    caveat: str = ""
    basis: Text
    source: tuple[Source, ...] = Field(min_length=1)


class Interval(Row):
    """Factors on a serving figure between which 80 % of measurements lie that were not fitted to.

    Attributes
    ----------
    figure
        Time per output token or to the first one, with prefill and decode on the same workers or apart.
    experts, engines, seen
        Models, engines and devices that it is for: with routed experts or without, and whether the device was measured;
        what is not given is for all.
    """

    figure: Literal["tpot", "ttft", "tpot apart", "ttft apart"]
    experts: Flag | None = None
    engines: tuple[Text, ...] = ()
    seen: Flag | None = None
    low: Positive
    high: Positive


class Law(Row):
    """Shares that serving engines reach on some architectures; see ``efficiencies/serving.toml``.

    Attributes
    ----------
    memory, narrow, cache, compute, compute8, compute4, grouped, link
        As in `roofline.Shares`.
    prompt_link
        Share of a link's bandwidth for the longer messages of a prompt.
    link_gb_per_s
        The link that most of the measured devices have [GB/s].
    prompt_kernel_s, first_kernel_s
        What each kernel of a prompt costs the decode steps that it holds up, and until its first token is out [s].
    in_step
        Prompts prefilled together in runs whose requests all have one length, under engines that mix them with decode steps.
    seen
        Devices that were measured.
    """

    name: Text
    architectures: tuple[Text, ...]
    seen: tuple[Text, ...]
    memory: Share
    narrow: Share
    cache: Share
    compute: Share
    compute8: Share
    compute4: Share
    grouped: Share
    link: Share
    prompt_link: Share
    link_gb_per_s: Positive
    prompt_kernel_s: Seconds
    first_kernel_s: Seconds
    in_step: Annotated[float, Field(ge=1, lt=100)]
    points: Maybe
    basis: Text
    interval: tuple[Interval, ...]
    source: tuple[Source, ...] = Field(min_length=1)

    def bounds(self, figure: str, experts: bool, engine: str, seen: bool) -> Bounds:
        """The interval of a figure: the first that is for such models, engines and devices."""
        return next(
            (row.low, row.high)
            for row in self.interval
            if row.figure == figure
            and row.seen in (None, seen)
            and row.experts in (None, experts)
            and (not row.engines or engine in row.engines)
        )

    def wider(self, figure: str, bounds: Bounds) -> Bounds:
        """An interval that holds another and that of a figure."""
        return _around(bounds, self.bounds(figure, False, "", False))


def _around(one: Bounds, other: Bounds) -> Bounds:
    return min(one[0], other[0]), max(one[1], other[1])


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What a deployment reaches of its device's peaks.

    Attributes
    ----------
    shares, prompt
        Of a decode step and of a prompt.
    first_kernel_s, in_step
        As in `Law`.
    interval, first_interval
        Factors on the expected time of a decode step or per output token, and to the first token, between which 80 % of
        measurements are meant to lie.
    apart_interval, apart_first_interval
        The same where prefill and decode have workers of their own.
    origin, whose
        What it rests on: measured, published or generic; and of which devices, in words.
    told
        How the interval was checked, in words.
    """

    name: str
    origin: str
    whose: str
    shares: Shares
    prompt: Shares
    first_kernel_s: float
    in_step: float
    interval: Bounds
    first_interval: Bounds
    apart_interval: Bounds
    apart_first_interval: Bounds
    told: str
    basis: str
    source: tuple[Source, ...]


def efficiency_of(gpu: GpuSpec, engine: str, setup: Setup, experts: bool) -> Efficiency:
    """The best efficiency known for a device under an engine.

    A device that was measured has its own shares. Serving engines on architectures that were measured under them have the
    fitted law. Others have their architecture's row
    or the default one, and from the law what no row has: the ratio of narrower formats and of grouped products to plain
    16-bit ones, what a prompt's kernels cost, and how much slower short all-reduces are.

    Parameters
    ----------
    engine, setup
        The engine's id, and how it is set up.
    experts
        Whether the model routes tokens to experts.
    """
    law, served = load_law(), setup.kernel_us > 0
    if gpu.measured is not None:
        return _measured(gpu.measured, gpu, law, setup, engine, experts)
    if served and gpu.architecture in law.architectures:
        seen = gpu.id in law.seen
        return _fitted(
            law, setup, law.bounds("tpot", experts, engine, seen), law.bounds("ttft", experts, engine, seen), seen
        )
    return _generic(_row(gpu), law, setup, engine, experts, gpu)


def _row(gpu: GpuSpec) -> Architecture:
    return load_architectures().get(gpu.architecture) or load_architectures()["default"]


def _measured(usage: Usage, gpu: GpuSpec, law: Law, setup: Setup, engine: str, experts: bool) -> Efficiency:
    """What the device itself reached; links, 4-bit products and what an engine costs were not measured with it."""
    row, served = _row(gpu), setup.kernel_us > 0
    lawful = served and gpu.architecture in law.architectures
    shares = replace(
        shares_of(usage), link=law.link if lawful else _short_link(row, law, gpu),
        launch_s=max(usage.launch_s, _engine_floor(row, setup)),
    )  # fmt: skip
    prompt_s, first_s = (max(usage.launch_s, s * served) for s in (law.prompt_kernel_s, law.first_kernel_s))
    interval = first = usage.interval
    loops = f"{usage.held_out} decode loops that were timed" if usage.held_out else "a guess"
    told = f"is an 80% interval of {loops}" if usage.held_out else "is a guess"
    if served:
        step, prompts = (law.bounds(figure, experts, engine, gpu.id in law.seen) for figure in ("tpot", "ttft"))
        interval, first = _around(interval, step), _around(first, prompts)
        told = f"is the wider of two: of {loops}, and of serving engines on {law.name} devices"
    return Efficiency(
        name=gpu.name, origin="measured", whose=f"by kvplan bench{_when(usage)}", shares=shares,
        prompt=replace(shares, link=law.prompt_link if lawful else row.link, launch_s=prompt_s),
        first_kernel_s=first_s, in_step=law.in_step, interval=interval, first_interval=first,
        apart_interval=law.wider("tpot apart", interval), apart_first_interval=law.wider("ttft apart", first), told=told,
        basis=f"{usage.basis}, {usage.points} timings", source=(_own_source(usage),),
    )  # fmt: skip


def shares_of(usage: Usage) -> Shares:
    """What a device reached, on its own; 4-bit products are to 16-bit ones as under serving engines."""
    law = load_law()
    return Shares(
        memory=usage.memory, narrow=usage.memory, cache=usage.cache, compute=usage.compute, compute8=usage.compute8,
        compute4=usage.compute * law.compute4 / law.compute, grouped=usage.grouped, activations=usage.memory,
        launch_s=usage.launch_s, soft=True,
    )  # fmt: skip


def _when(usage: Usage) -> str:
    return f" on {usage.date}" * bool(usage.date) + f" ({usage.file})" * bool(usage.file)


def _own_source(usage: Usage) -> Source:
    return Source(
        title="measured by kvplan bench", locator=", ".join(filter(None, (usage.file, usage.software))) or "a GPU file",
        date=usage.date or "no date",
    )  # fmt: skip


def _fitted(law: Law, setup: Setup, interval: Bounds, first: Bounds, seen: bool) -> Efficiency:
    shares = Shares(
        memory=law.memory, narrow=law.narrow, cache=law.cache, compute=law.compute, compute8=law.compute8,
        compute4=law.compute4, grouped=law.grouped, link=law.link, activations=law.memory,
        launch_s=setup.kernel_us * MICRO, soft=True,
    )  # fmt: skip
    which = "" if seen else ", of devices left out"
    return Efficiency(
        name=law.name, origin="published" if seen else "generic", whose=f"for {law.name} devices", shares=shares,
        prompt=replace(shares, link=law.prompt_link, launch_s=law.prompt_kernel_s),
        first_kernel_s=law.first_kernel_s, in_step=law.in_step, interval=interval, first_interval=first,
        apart_interval=law.wider("tpot apart", interval), apart_first_interval=law.wider("ttft apart", first),
        told=f"covers 77 to 79% of held-out measurements{which}",
        basis=law.basis, source=law.source,
    )  # fmt: skip


def _short_link(row: Architecture, law: Law, gpu: GpuSpec) -> float:
    """Share of the link at which the short all-reduces of a decode step go.

    To the law, prompts reach ``prompt_link`` of a link of ``link_gb_per_s``, and decode steps ``link``: as if a short
    message passed another link after the device's own, and that one is taken to be as fast on every device.
    """
    if row.overlaps or not gpu.link_bytes_per_s:
        return row.link
    other_bytes_per_s = 1e9 * law.link_gb_per_s / (1.0 / law.link - 1.0 / law.prompt_link)
    return 1.0 / (1.0 / row.link + gpu.link_bytes_per_s / other_bytes_per_s)


def _generic(row: Architecture, law: Law, setup: Setup, engine: str, experts: bool, gpu: GpuSpec) -> Efficiency:
    served = setup.kernel_us > 0
    narrower, narrowest = law.compute8 / law.compute, law.compute4 / law.compute
    shares = Shares(
        memory=row.memory, narrow=row.memory, cache=row.memory, compute=row.compute, compute8=row.compute * narrower,
        compute4=row.compute * narrowest, grouped=law.grouped,
        link=_short_link(row, law, gpu), activations=row.memory,
        launch_s=_engine_floor(row, setup) if served else row.launch_s, soft=True,
    )  # fmt: skip
    fitted, first = (law.bounds(figure, experts, engine, False) for figure in ("tpot", "ttft"))
    interval = _around(row.interval, fitted) if served else row.interval
    first = _around(interval, first)
    held = f"covers {row.coverage:.0%} of {row.held_out} measured steps{row.caveat}" if row.held_out else "is a guess"
    return Efficiency(
        name=row.name, origin="generic", whose=f"for {row.name} devices", shares=shares,
        prompt=replace(shares, link=row.link, launch_s=law.prompt_kernel_s),
        first_kernel_s=law.first_kernel_s if served else row.launch_s, in_step=law.in_step, interval=interval,
        first_interval=first, apart_interval=law.wider("tpot apart", interval),
        apart_first_interval=law.wider("ttft apart", first), told=held, basis=row.basis, source=row.source,
    )  # fmt: skip


def _engine_floor(row: Architecture, setup: Setup) -> float:
    """What a kernel costs under the engine [s]: fitted on Hopper, elsewhere in proportion to the device's own floor."""
    return row.launch_s * setup.kernel_us * MICRO / load_architectures()["Hopper"].launch_s


@lru_cache(maxsize=1)
def load_architectures() -> dict[str, Architecture]:
    """Generic rows by architecture; ``default`` is for the others."""
    return {row["name"]: Architecture(**row) for row in _read("generic.toml")["architecture"]}


@lru_cache(maxsize=1)
def load_law() -> Law:
    """The law of serving that kvplan ships."""
    return Law(**_read("serving.toml"))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / name).read_text(encoding="utf-8"))
