"""Settings of a training, from YAML or a dict: validated, frozen, with the path of what is wrong.

An unknown key, a wrong type or an impossible time is an error that names the key's path
(``training.epochs``) and the nearest known one. YAML is loaded safely: a file makes plain values
only. What it names as ``package.module:name`` is imported, though, which runs that module's code;
so a configuration is as trusted as a script.

One file, although it is long: it is the list of all settings, and the only one that knows pydantic
and YAML.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from dynvision_snn.energy import resolve_profile
from dynvision_snn.engine.choosing import EngineName
from dynvision_snn.errors import ConfigError, DynvisionError, MissingExtraError, known_names
from dynvision_snn.presentation import Presentation
from dynvision_snn.spike_bits import KeepSpikes
from dynvision_snn.timing import nearest_steps

try:
    import yaml
    from pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        ValidationError,
        field_validator,
        model_validator,
    )
except ImportError as error:
    raise MissingExtraError("pydantic and PyYAML", "training", "A configuration") from error

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class Settings(BaseModel):
    """Base of all sections: unknown keys and other types are errors, and nothing is changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The model and how it is wrapped; the section may be its factory alone.

    Attributes:
        factory: ``package.module:name``, called with ``dt=`` in ms if it takes that, and `kwargs`.
        readout, stepping, time_axis, engine, recompute_every, keep_spikes, keep_membranes: as in
            `dynvision_snn.wrap`.
        compile: a backend of ``torch.compile``, such as ``inductor``; None for none.
    """

    factory: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    readout: str | None = None
    stepping: Literal["step", "sequence"] | None = None
    time_axis: Literal[0, 1] | None = None
    engine: EngineName = "auto"
    recompute_every: Annotated[float, Field(gt=0)] | None = None
    keep_spikes: KeepSpikes = "floats"
    keep_membranes: bool = True
    compile: str | None = None


class DataSettings(Settings):
    """Where the samples come from.

    Attributes:
        factory: ``digits``, or ``package.module:name``: called with `kwargs`, it gives a training
            and a test set of (image, label) pairs, each with a length.
        timed: whether samples have time themselves, ``[T, *features]``, with one label or ``[T]``;
            the presentation then says what their timesteps are.
        validation: share of the training set that is held out to validate with; 0 for none.
        n_workers: processes that load data.
    """

    factory: str = "digits"
    kwargs: dict[str, Any] = Field(default_factory=dict)
    timed: bool = False
    validation: Share = 0.1
    n_workers: Annotated[int, Field(ge=0)] = 0

    @property
    def time_axis(self) -> int | None:
        """Where a batch has time: samples come first."""
        return 1 if self.timed else None


class VaryingSettings(Settings):
    """What varies from batch to batch in training; see `training.VaryingPresentation`.

    Attributes:
        by_sample: whether each sample of a batch has a draw of its own.
    """

    shuffle: bool = False
    duration: Range | None = None
    onset_jitter: Annotated[float, Field(ge=0)] = 0.0
    reaction_time: Range | None = None
    by_sample: bool = False


class PresentationSettings(Settings):
    """The schedule, times in ms; see `dynvision_snn.Presentation`.

    Attributes:
        pattern: entries, which share `duration`; or else
        phases: [name, duration, stimulus] each.
        duration: of the whole, for a pattern; by default one timestep per entry.
        varying: what varies in training.
    """

    pattern: str | list[int] | None = None
    phases: list[tuple[str, float, int]] | None = None
    duration: float | None = None
    reaction_time: float = 0.0
    idle_time: float = 0.0
    null_value: float = 0.0
    ignore_index: int = -1
    varying: VaryingSettings = Field(default_factory=VaryingSettings)

    @field_validator("phases", mode="before")
    @classmethod
    def _triples(cls, phases: Any) -> Any:
        return [tuple(p) if isinstance(p, list) else p for p in phases] if phases else phases

    def build(self, dt: float) -> Presentation:
        """The presentation at a timestep of `dt` ms."""
        common: dict[str, Any] = {
            "reaction_time": self.reaction_time,
            "idle_time": self.idle_time,
            "null_value": self.null_value,
            "ignore_index": self.ignore_index,
        }
        if (self.pattern is None) == (self.phases is None):
            raise ConfigError("give either a pattern or phases.")
        if self.phases is not None:
            if self.duration is not None:
                raise ConfigError("phases have durations of their own: leave duration out.")
            return Presentation.from_phases(self.phases, dt, **common)
        assert self.pattern is not None
        steps = None if self.duration is None else nearest_steps(self.duration, dt, "duration")
        return Presentation(self.pattern, dt, n_timesteps=steps, **common)


class LossSettings(Settings):
    """One loss of the criterion; see `losses.build_criterion`."""

    name: str
    weight: Annotated[float, Field(ge=0)] = 1.0
    kwargs: dict[str, Any] = Field(default_factory=dict)
    label: str | None = None


class TargetSettings(Settings):
    """A limit on the energy; see `training.EnergyTarget`."""

    limit: Annotated[float, Field(gt=0)]
    unit: Literal["activity", "hertz", "synops", "joules"] = "activity"
    profile: str | None = None
    rate: Annotated[float, Field(gt=0)] = 0.05
    damping: Annotated[float, Field(ge=0)] = 0.5


class NamedSettings(Settings):
    """An optimizer by its name in ``torch.optim``, or as ``package.module:name``."""

    name: str
    kwargs: dict[str, Any] = Field(default_factory=dict)


class SchedulerSettings(NamedSettings):
    """A scheduler by its name in ``torch.optim.lr_scheduler``, or as ``package.module:name``.

    Attributes:
        interval: whether it moves at every ``epoch`` or ``step``.
        monitor: what ReduceLROnPlateau looks at.
    """

    interval: Literal["epoch", "step"] = "epoch"
    monitor: str = "train_loss"


class EarlyStoppingSettings(Settings):
    """Stop when a metric no longer gets better; see Lightning's EarlyStopping."""

    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    patience: Positive = 5
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class TrainingSettings(Settings):
    """How long, how large, on what.

    Attributes:
        batch_size: of the global batch, over all processes.
        gradient_clip: largest norm of the gradient; None for no clipping.
        precision: Lightning's: ``32-true``, ``bf16-mixed``, ``16-mixed``, ``64-true``.
        truncate: chunks of truncated back-propagation in ms; None for none.
        processes, nodes: how many processes per node train together, and on how many nodes.
        accelerator: Lightning's: ``cpu``, ``gpu``, ``auto``.
        validate_every: epochs between validations.
        checkpoint_every: steps between checkpoints within an epoch; None for its end alone.
        monitor: what the best checkpoint is best in; by default ``val_objective``.
        keep: how many of the best checkpoints are kept.
    """

    epochs: Positive = 20
    batch_size: Positive = 128
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    accumulate: Positive = 1
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    truncate: Annotated[float, Field(gt=0)] | None = None
    processes: Positive = 1
    nodes: Positive = 1
    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    validate_every: Positive = 1
    checkpoint_every: Positive | None = None
    log_every: Positive = 10
    monitor: str | None = None
    keep: Positive = 1
    early_stopping: EarlyStoppingSettings | None = None


class SweepSettings(Settings):
    """What a sweep varies: the energy loss's weight, or the target's limit.

    Attributes:
        over: ``energy_weight`` or ``limit``.
        values: one run each.
        jobs: runs at a time, each a process of its own.
    """

    over: Literal["energy_weight", "limit"] = "energy_weight"
    values: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    jobs: Positive = 2


def _default_criterion() -> list[LossSettings]:
    return [LossSettings(name="cross_entropy_loss")]


class TrainingConfig(Settings):
    """A whole training. Times in ms, energies in J; see docs/training.md.

    Attributes:
        dt: length of a timestep.
        profile: hardware profile that energies are shown for.
        out: folder that the run is written to.
    """

    model: ModelSettings
    dt: Annotated[float, Field(gt=0)]
    presentation: PresentationSettings
    data: DataSettings = Field(default_factory=DataSettings)
    criterion: list[LossSettings] = Field(default_factory=_default_criterion)
    target: TargetSettings | None = None
    optimizer: NamedSettings = Field(default_factory=lambda: NamedSettings(name="Adam"))
    scheduler: SchedulerSettings | None = None
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    profile: str = "45nm-fp32"
    seed: Annotated[int, Field(ge=0)] = 0
    out: str = "runs/training"
    sweep: SweepSettings | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _factory_alone(cls, model: Any) -> Any:
        return {"factory": model} if isinstance(model, str) else model

    @model_validator(mode="after")
    def _agree(self) -> Self:
        try:
            presentation = self.presentation.build(self.dt)
        except DynvisionError as error:
            raise _Impossible("presentation", str(error)) from error
        profiles = {"profile": self.profile}
        if self.target is not None and self.target.profile is not None:
            profiles["target.profile"] = self.target.profile
        for path, name in profiles.items():
            try:
                resolve_profile(name)
            except DynvisionError as error:
                raise _Impossible(path, str(error)) from error
        if self.target is not None and (self.target.unit == "joules") != (
            self.target.profile is not None
        ):
            raise _Impossible("target.profile", "is needed for joules, and for no other unit.")
        truncate = self.training.truncate
        if truncate is not None and truncate < presentation.dt:
            raise _Impossible(
                "training.truncate", f"is {truncate:g} ms, less than a timestep of {self.dt:g} ms."
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain values that `parse_config` takes back."""
        return self.model_dump(mode="json")

    def with_energy(self, over: str, value: float) -> TrainingConfig:
        """The same training with another energy weight or limit, and no sweep.

        Raises:
            ConfigError: if there is no such weight or limit to set.
        """
        settings = self.resolved() | {"sweep": None}
        if over == "limit":
            if self.target is None:
                raise ConfigError("sweep.over is 'limit', but there is no target with a limit.")
            settings["target"] = settings["target"] | {"limit": value}
            return parse_config(settings)
        losses = settings["criterion"]
        found = [loss for loss in losses if loss["name"] in ("energy_loss", "EnergyLoss")]
        if len(found) != 1:
            raise ConfigError(
                f"sweep.over is 'energy_weight', but the criterion has {len(found)} energy losses; "
                "expected one."
            )
        found[0]["weight"] = value
        return parse_config(settings)


class _Impossible(ValueError):
    """Settings that are legal one by one and impossible together."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


def parse_config(settings: Mapping[str, Any], source: str = "the configuration") -> TrainingConfig:
    """Settings from plain values.

    Args:
        settings: nested dicts, as YAML gives them.
        source: what an error calls them.

    Raises:
        ConfigError: naming the path of each wrong key, what was received and what is expected.

    >>> parse_config({"model": "a.b:c", "dt": 1.0, "presentation": {"patern": "01"}})
    Traceback (most recent call last):
    ...
    dynvision_snn.errors.ConfigError: the configuration:
      presentation.patern: no such setting. Did you mean 'pattern'? Known: ...
    """
    try:
        return TrainingConfig.model_validate(dict(settings))
    except ValidationError as error:
        lines = [f"  {_told(problem)}" for problem in error.errors()]
        raise ConfigError("\n".join([f"{source}:", *lines])) from error


def load_config(path: str | Path) -> TrainingConfig:
    """Settings from a YAML file.

    Raises:
        ConfigError: as `parse_config`; for a file that is not there, is no YAML, holds no
            settings, or has a key twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return parse_config(load_yaml(text, str(path)), str(path))


def load_yaml(text: str, source: str = "the text") -> dict[str, Any]:
    """A YAML mapping of plain values.

    Numbers are read as in YAML 1.2, so that ``1e-3`` is one.

    Raises:
        ConfigError: for what is no YAML, no mapping, or has a key twice.

    >>> load_yaml("lr: 1e-3")
    {'lr': 0.001}
    """
    try:
        values = yaml.load(text, Loader=_SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is no YAML of plain values: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds {'nothing' if values is None else type(values).__name__}; expected "
            "settings, such as 'dt: 2.0'."
        )
    return values


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Plain values as YAML that `load_yaml` reads."""
    text: str = yaml.safe_dump(dict(settings), sort_keys=False)
    return text


class _SafeLoader(yaml.SafeLoader):
    """Plain values only; numbers as in YAML 1.2; a key twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key!r} stands here twice",
                    node.value[place][0].start_mark,
                )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _told(problem: Mapping[str, Any]) -> str:
    """One problem in one line: path, what is wrong, what is expected."""
    place = [part for part in problem["loc"] if part != "function-after"]
    path = ".".join(str(part) for part in place)
    if problem["type"] == "extra_forbidden":
        return f"{path}: no such setting. {known_names(str(place[-1]), _known(place[:-1]))}"
    if problem["type"] == "missing":
        return f"{path}: is needed and not there."
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{path}: {message}" if path else message
    received = problem["input"]
    return f"{path}: {problem['msg']}; received {received!r} ({type(received).__name__})."


def _known(place: Sequence[Any]) -> list[str]:
    """The settings of the section at `place`."""
    section: type[BaseModel] = TrainingConfig
    for part in place:
        if part in section.model_fields:
            section = _section(section.model_fields[part].annotation) or section
    return sorted(section.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section inside ``Section``, ``Section | None`` or ``list[Section]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Union, types.UnionType):
        found = (_section(argument) for argument in get_args(annotation))
        return next((section for section in found if section), None)
    return None
