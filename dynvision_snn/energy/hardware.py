"""Hardware profiles: what one operation costs, where the figure comes from, what it leaves out.

A figure that a profile does not have is None, never 0, and what it would have priced is shown as
lacking. The package's own profiles are data, in ``profiles.toml``; other packages add theirs
through the entry point group ``dynvision_snn.hardware`` (each entry a `HardwareProfile`).
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata, resources
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from dynvision_snn.errors import EnergyError, known_names

ENTRY_POINT_GROUP = "dynvision_snn.hardware"

Basis = Literal["measured", "simulated", "estimate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareProfile:
    """Energy per operation of one piece of hardware. None: the source has no figure.

    Attributes:
        name: what it is called by.
        source: publication the figures are from.
        basis: ``"measured"`` on silicon, ``"simulated"``, or an ``"estimate"``.
        ac: J per synaptic operation on a spike (accumulate).
        mac: J per synaptic operation on an analog value (multiply and accumulate). A chip that
            knows spikes alone has none, and analog connections are then lacking, not cheap.
        neuron_update_active: J per neuron update with a nonzero output (a spike, an analog value).
        neuron_update_inactive: J per neuron update without.
        spike: J per spike sent, besides the synaptic operations that it causes.
        event_driven: whether zero inputs and zero weights cost nothing. If not, every synapse is
            a MAC at every timestep (dense SynOps), as on CPUs and GPUs.
        memory_access: J per byte read or written; for memory-aware models alone
            (``MemoryModel.on(profile)``). A budget counts operations and does not use it.
        static_power: W drawn whether or not anything happens.
        hardware_dt: ms of hardware time per timestep. Static power is priced only where it is
            given.
        caveats: what to know before publishing a number; conflicting figures too.

    Raises:
        EnergyError: a negative, NaN or non-numeric figure, no figure at all, half of a pair, or
            an unknown basis.

    >>> chip = HardwareProfile(name="chip", source="our bench", basis="measured", ac=2e-12)
    >>> chip.energies["mac"] is None
    True
    """

    name: str
    source: str
    basis: Basis
    ac: float | None = None
    mac: float | None = None
    neuron_update_active: float | None = None
    neuron_update_inactive: float | None = None
    spike: float | None = None
    event_driven: bool = True
    memory_access: float | None = None
    static_power: float | None = None
    hardware_dt: float | None = None
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"Hardware profile {self.name!r}"
        for text, value in (("name", self.name), ("source", self.source)):
            if not isinstance(value, str) or not value.strip():
                raise EnergyError(f"{where}: {text} must say something; got {value!r}.")
        if self.basis not in get_args(Basis):
            raise EnergyError(
                f"{where}: basis is {self.basis!r}; expected one of {', '.join(get_args(Basis))}."
            )
        if not isinstance(self.event_driven, bool):
            raise EnergyError(f"{where}: event_driven is true or false; got {self.event_driven!r}.")
        if not isinstance(self.caveats, tuple) or not all(isinstance(c, str) for c in self.caveats):
            raise EnergyError(f"{where}: caveats is a tuple of texts; got {self.caveats!r}.")
        figures: dict[str, float | None] = {
            **self.energies,
            "memory_access": self.memory_access,
            "static_power": self.static_power,
            "hardware_dt": self.hardware_dt,
        }
        for field, figure in figures.items():
            _check_figure(where, field, figure)
        self._check_together(where)

    def _check_together(self, where: str) -> None:
        if all(figure is None for figure in (*self.energies.values(), self.static_power)):
            raise EnergyError(f"{where} has no figure at all; give at least ac or mac, in joules.")
        if (self.neuron_update_active is None) != (self.neuron_update_inactive is None):
            raise EnergyError(
                f"{where} prices only one kind of neuron update. Give neuron_update_active and "
                f"neuron_update_inactive, the same number twice if the source has one."
            )
        if not self.event_driven and (self.mac is None or self.ac is not None):
            raise EnergyError(
                f"{where} is not event-driven, so that every synapse is a MAC: give mac and no ac."
            )
        if self.hardware_dt is not None and self.static_power is None:
            raise EnergyError(f"{where} has a hardware_dt but no static_power for it to count.")
        if self.hardware_dt == 0:
            raise EnergyError(
                f"{where}: hardware_dt is 0 ms; leave it out to price no static power."
            )

    @property
    def energies(self) -> Mapping[str, float | None]:
        """J per operation, by term."""
        return {
            "ac": self.ac,
            "mac": self.mac,
            "neuron_update_active": self.neuron_update_active,
            "neuron_update_inactive": self.neuron_update_inactive,
            "spike": self.spike,
        }

    @property
    def static_energy(self) -> float | None:
        """J of static power per timestep; None unless static power and hardware time are known."""
        if self.static_power is None or self.hardware_dt is None:
            return None
        return self.static_power * self.hardware_dt * 1e-3  # W * ms * (s / ms) = J

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> HardwareProfile:
        """A profile from plain values, such as a parsed file.

        Raises:
            EnergyError: an unknown or missing field, or a value that `HardwareProfile` refuses.

        >>> HardwareProfile.from_dict(
        ...     {"name": "chip", "source": "our bench", "basis": "measured", "acs": 2e-12})
        Traceback (most recent call last):
        ...
        dynvision_snn.errors.EnergyError: Unknown field 'acs' of a hardware profile. ...
        """
        known = {field.name for field in fields(cls)}
        for name in figures:
            if name not in known:
                raise EnergyError(
                    f"Unknown field {name!r} of a hardware profile. {known_names(str(name), known)}"
                )
        missing = [name for name in ("name", "source", "basis") if name not in figures]
        if missing:
            raise EnergyError(
                f"A hardware profile needs {', '.join(missing)}; got {', '.join(figures)}."
            )
        caveats = figures.get("caveats", ())
        if isinstance(caveats, list):
            caveats = tuple(caveats)
        return cls(**{**figures, "caveats": caveats})

    @classmethod
    def from_file(cls, path: str | Path) -> HardwareProfile:
        """A profile from a JSON or TOML file (by its ending) of `from_dict`'s fields.

        Raises:
            EnergyError: another file type, a file that does not parse or holds no table, or what
                `from_dict` refuses.
            FileNotFoundError: no such file.
        """
        path = Path(path)
        content = _parse(path)
        if not isinstance(content, dict):
            raise EnergyError(f"{path} holds {type(content).__name__}, not a table of fields.")
        return cls.from_dict(content)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe; `from_dict` takes them back."""
        return {**asdict(self), "caveats": list(self.caveats)}


ProfileLike = str | HardwareProfile | Mapping[str, Any]
"""A profile, its name, or its fields."""


def hardware_profiles() -> Mapping[str, HardwareProfile]:
    """Every profile by name: the package's own, then those of installed packages; read-only.

    Raises:
        EnergyError: two profiles of one name, or an entry point that yields no profile.

    >>> hardware_profiles()["loihi"].basis
    'simulated'
    """
    shipped = resources.files("dynvision_snn.energy").joinpath("profiles.toml")
    tables = tomllib.loads(shipped.read_text(encoding="utf-8"))["profile"]
    found = [(HardwareProfile.from_dict(table), "dynvision_snn") for table in tables]
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        profile = entry.load()
        if not isinstance(profile, HardwareProfile):
            raise EnergyError(
                f"The entry point {entry.name!r} ({entry.value}) of {ENTRY_POINT_GROUP} is a "
                f"{type(profile).__name__}; expected a HardwareProfile."
            )
        found.append((profile, entry.value))
    profiles: dict[str, HardwareProfile] = {}
    origins: dict[str, str] = {}
    for profile, origin in found:
        if profile.name in profiles:
            raise EnergyError(
                f"Two hardware profiles are called {profile.name!r}: of {origins[profile.name]} "
                f"and of {origin}. Rename one, or uninstall its package."
            )
        profiles[profile.name], origins[profile.name] = profile, origin
    return MappingProxyType(profiles)


def resolve_profile(profile: ProfileLike) -> HardwareProfile:
    """A profile from its name, its fields, or itself.

    Raises:
        EnergyError: an unknown name, or fields that make no profile.

    >>> resolve_profile("45nm-fp32").mac
    4.6e-12
    """
    if isinstance(profile, HardwareProfile):
        return profile
    if isinstance(profile, Mapping):
        return HardwareProfile.from_dict(profile)
    if not isinstance(profile, str):
        raise EnergyError(
            f"A hardware profile is a name, a HardwareProfile or a dict of its fields; got "
            f"{type(profile).__name__}."
        )
    profiles = hardware_profiles()
    if profile not in profiles:
        raise EnergyError(
            f"Unknown hardware profile {profile!r}. {known_names(profile, profiles)} "
            f"Or pass a HardwareProfile of your own."
        )
    return profiles[profile]


def _check_figure(where: str, field: str, figure: object) -> None:
    if figure is None:
        return
    if isinstance(figure, bool) or not isinstance(figure, Real):
        hint = " (YAML reads a number without a dot, such as 9e-10, as text: write 9.0e-10)"
        raise EnergyError(
            f"{where}: {field} must be a number; got {figure!r}"
            f"{hint if isinstance(figure, str) else ''}."
        )
    if not math.isfinite(figure) or figure < 0:
        raise EnergyError(f"{where}: {field} must be finite and not negative; got {figure!r}.")


def _parse(path: Path) -> object:
    text = path.read_text(encoding="utf-8")
    match path.suffix.lower():
        case ".json":
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                raise EnergyError(f"{path} is not JSON: {error}.") from error
        case ".toml":
            try:
                return tomllib.loads(text)
            except tomllib.TOMLDecodeError as error:
                raise EnergyError(f"{path} is not TOML: {error}.") from error
    raise EnergyError(
        f"{path}: a profile file ends in .json or .toml. Parse another kind yourself and pass its "
        f"fields to HardwareProfile.from_dict."
    )
