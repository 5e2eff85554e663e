"""How a bundle run begins: refuse what is misspelt, seed, and note what was run, also under ``monai.bundle run``."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import pydoc
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, run, run_workflow
from monai.bundle.scripts import update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import set_determinism

from drr2ct.pipeline.running.distributed import is_main_process, refuse_lonely_processes
from drr2ct.pipeline.running.faults import MachineFaultError, causes, explain_fault
from drr2ct.pipeline.running.plain import paths_as_data, typed_value
from drr2ct.pipeline.running.workers import keep_sockets_short
from drr2ct.transforms.files import replacing
from drr2ct.transforms.validation import InputError

_RUN_ARGUMENTS = {
    name
    for verb in (run, run_workflow, ConfigWorkflow)
    for name, parameter in inspect.signature(verb).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
}
"""Arguments of MONAI's verbs themselves; no keys of a configuration."""
_KINDS = {"train": "a training", "job": "a reconstruction", "evaluator": "an evaluation"}
"""By the first of these keys that a configuration has it is known what it runs."""


def bundle_file(name: str) -> Path:
    """A file of the installed bundle, for example ``configs/train.yaml``.

    Raises:
        InputError: if it has no such file.
    """
    path = Path(str(files("drr2ct.bundles"))) / "biplanar_ct" / name
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise InputError(f"the bundle has no {name}; choose from {', '.join(known)}.")
    return path


def merged_config(
    config_files: Sequence[str | Path], overrides: Mapping[str, Any], tracking: str | Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration that a run resolves: files merged in order, then overrides.

    Args:
        config_files: merged in order.
        overrides: of their keys, and of those that tracking adds. Paths are data; text is in MONAI's own language
            (``drr2ct.pipeline.running.plain.as_data`` makes it data).
        tracking: ``mlflow``, or settings of another or their file, as MONAI's ``run`` takes them.

    Raises:
        InputError: for an override whose key is in none of the files (MONAI ignores those at the top level), or that
            no argument of its component has, or that puts something else where a number or a switch stands.
    """
    overrides = {key: paths_as_data(value) for key, value in overrides.items()}
    parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in config_files]))
    config: dict[str, Any] = parser.config  # type: ignore[assignment]
    known = set(config)
    tracked = _tracking_keys(tracking) - known
    for key, value in overrides.items():
        top = key.replace("::", "#").split("#")[0]
        if top in tracked:
            continue
        if top in _tracking_keys("mlflow") - known:
            raise InputError(f"--{key} is of experiment tracking, which is off; give --tracking mlflow.")
        if top not in known:
            raise InputError(
                f"--{key} is no key of {', '.join(Path(path).name for path in config_files)}; "
                f"known keys: {', '.join(sorted(known - {'imports', 'initialize', 'run', 'finalize'}))}."
            )
        _check_kind(key, parser.get(key), value)
        _check_argument(key.replace("::", "#"), parser)
    try:
        parser.update({key.replace("::", "#"): value for key, value in overrides.items()})
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"an override does not fit the configuration ({error}); check the path of its key.") from error
    return config


def _tracking_keys(tracking: str | Mapping[str, Any] | None) -> set[str]:
    """Keys that MONAI adds to a configuration for experiment tracking."""
    if tracking is None:
        return set()
    settings: Any = tracking
    if isinstance(tracking, str):
        settings = DEFAULT_EXP_MGMT_SETTINGS.get(tracking) or ConfigParser.load_config_files(tracking)
    return set(settings.get("configs", ()))


def _check_kind(key: str, current: Any, value: Any) -> None:
    """A word where a number is wanted would only be noticed deep inside, and not by its name."""
    computed = isinstance(value, str) and value.startswith(("$", "@", "%"))
    if key == "device" and isinstance(value, str) and not computed:
        raise InputError(f"--device takes an expression; for {value}, give '$torch.device(\"{value}\")'.")
    if isinstance(current, bool):
        wanted, fits = "true or false", isinstance(value, bool)
    elif isinstance(current, (int, float)):
        wanted, fits = "a number", isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        return
    if not (fits or computed):
        raise InputError(f"--{key} takes {wanted}, not {value!r}.")


def _check_argument(key: str, parser: ConfigParser) -> None:
    """A misspelt argument of a component would only be noticed when that is made, with a traceback."""
    parent, _, name = key.rpartition("#")
    component = parser.get(parent) if parent else None
    if not isinstance(component, dict) or name in component or name.startswith("_"):
        return
    target = pydoc.locate(str(component.get("_target_")))
    if not callable(target):
        return
    parameters = inspect.signature(target).parameters
    if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        close = difflib.get_close_matches(name, parameters, 1)
        meant = f"did you mean {close[0]}? it has" if close else "it has"
        raise InputError(f"--{key}: {component['_target_']} has no {name}; {meant} {', '.join(parameters)}.")


@dataclass(frozen=True)
class Given:
    """What the arguments of ``python -m monai.bundle run`` ask for: files, overrides, and tracking."""

    config_files: list[str]
    overrides: dict[str, Any]
    tracking: str | dict[str, Any] | None


def command_line(arguments: Sequence[str]) -> Given:
    """Read the arguments of ``python -m monai.bundle run`` or ``run_workflow`` as MONAI does, ``--args_file`` included.

    Raises:
        InputError: for an arguments' file that cannot be read.
    """
    values: dict[str, Any] = {}
    pending: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            values[key] = typed_value(value) if equals else True
            pending = None if equals else key
        elif pending is not None:
            values[pending] = typed_value(argument)
            pending = None
    # Python Fire, which MONAI's command line is made with, takes hyphens too
    values = {name if (name := key.replace("-", "_")) in _RUN_ARGUMENTS else key: v for key, v in values.items()}
    if file := values.pop("args_file", None):
        try:
            values = update_kwargs(ConfigParser.load_config_file(str(file)), **values)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"arguments' file {file} cannot be read ({error}); give a JSON or YAML file.") from error
    found = values.get("config_file") or []
    config_files = [found] if isinstance(found, str) else list(found)
    overrides = {key: value for key, value in values.items() if key not in _RUN_ARGUMENTS}
    return Given(config_files, overrides, values.get("tracking"))


def begin(seed: int, output_dir: str | Path | None) -> None:
    """First step of every run: set the seeds and, under ``monai.bundle run``, check and save the configuration.

    Args:
        seed: of Python, NumPy and torch.
        output_dir: ``config.yaml`` is written there; None to write none.

    Raises:
        InputError: for unknown overrides, if nothing can be written to ``output_dir``, or if ``torchrun`` started
            several processes and the configuration is for one.
    """
    sys.excepthook = _print_input_errors
    logging.captureWarnings(True)
    refuse_lonely_processes()
    keep_sockets_short()
    if Path(sys.argv[0]).parts[-2:] == ("bundle", "__main__.py"):
        given = command_line(sys.argv[1:])
        if given.config_files:
            config = merged_config(given.config_files, given.overrides, given.tracking)
            if output_dir is not None:
                sys.excepthook = functools.partial(_print_input_errors, undo=save_config(config, output_dir))
    set_determinism(seed)


def save_config(config: Mapping[str, Any], output_dir: str | Path) -> Callable[[], None]:
    """Write ``config.yaml``, which runs again as it is, beside the output.

    Returns:
        What puts the one before back. To be called if the run is refused, as the new one is then not that of what lies
        beside it; does nothing if the run has written something.

    Raises:
        InputError: if the folder cannot be written, or holds the ``config.yaml`` of a run of another kind.
    """
    if not is_main_process():
        return lambda: None
    folder = Path(output_dir)
    path = folder / "config.yaml"
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        before = path.read_bytes() if path.exists() else None
        if before is not None and _kind(before) != (kind := _kind(config)):
            raise InputError(f"{path} is not that of {kind}, which would replace it; give another output folder.")
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written ({error.strerror}); choose another.") from error
    return functools.partial(_put_back, path, before, made)


def _kind(config: Mapping[str, Any] | bytes) -> str:
    """What a configuration runs, in words."""
    if isinstance(config, bytes):
        try:
            config = yaml.safe_load(config)
        except (yaml.YAMLError, UnicodeDecodeError):
            config = {}
    keys = set(config) if isinstance(config, Mapping) else set()
    return next((words for key, words in _KINDS.items() if key in keys), "another run")


def _put_back(path: Path, before: bytes | None, made: Sequence[Path]) -> None:
    written = path.stat().st_mtime_ns
    if any(other.is_file() and other.stat().st_mtime_ns > written for other in path.parent.rglob("*")):
        return
    # folders that were made for what was to come; the deepest last in order
    for folder in sorted((other for other in path.parent.rglob("*") if other.is_dir()), reverse=True):
        if folder.stat().st_mtime_ns > written and not any(folder.iterdir()):
            folder.rmdir()
    if before is not None:
        with replacing(path) as temporary:
            temporary.write_bytes(before)
        return
    path.unlink()
    for folder in made:
        if any(folder.iterdir()):
            break
        folder.rmdir()


def find_input_error(error: BaseException | None) -> InputError | None:
    """The user's mistake or the machine's fault behind an exception, if it is one: MONAI wraps what is raised."""
    found = [cause for cause in causes(error) if isinstance(cause, InputError)]
    return found[0] if found else explain_fault(error) or _unfit_component(error)


def _unfit_component(error: BaseException | None) -> InputError | None:
    """What a class of a library refuses of the values that the configuration gives it, or a class that there is not."""
    for cause in causes(error):
        if lost := re.match(r"Cannot locate class or function path: '([^']+)'", str(cause)):
            return InputError(f"there is no class or function {lost[1]}; check the spelling of the _target_ given.")
        made = re.match(r"Failed to instantiate component '([^']+)'", str(cause))
        if made and isinstance(cause.__cause__, (ValueError, TypeError)):
            reason = " ".join(str(cause.__cause__).split()).rstrip(".")
            return InputError(f"{made[1]} cannot be made from the configuration ({reason}); check the values given.")
    return None


def _refused(error: BaseException) -> bool:
    """Whether the user's input was at fault, not the machine."""
    mistake = find_input_error(error)
    return mistake is not None and not isinstance(mistake, MachineFaultError)


def _print_input_errors(
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    undo: Callable[[], None] = lambda: None,
) -> None:
    mistake = find_input_error(error)
    if _refused(error):
        undo()
    if mistake is None:
        traceback.print_exception(kind, error, trace)
    else:
        print(f"drr2ct: {mistake}", file=sys.stderr)


def run_bundle(config_files: Sequence[str | Path], overrides: Mapping[str, Any], keep_config: bool = True) -> list[Any]:
    """Run configurations as ``python -m monai.bundle run`` does, after checking and saving what is run.

    Args:
        config_files: merged in order.
        overrides: of any key, as of :func:`merged_config`; must give ``output_dir`` if the configuration is kept.
        keep_config: write ``config.yaml`` into ``output_dir``.

    Returns:
        The values of the configuration's ``run`` expressions.

    Raises:
        InputError: for unknown overrides, or whatever of the user's the run cannot use.
    """
    config = merged_config(config_files, overrides)
    undo = save_config(config, overrides["output_dir"]) if keep_config else lambda: None
    workflow = ConfigWorkflow(
        config_file=[str(path) for path in config_files],
        meta_file=str(bundle_file("configs/metadata.json")),
        logging_file=False,  # the caller's logging stays as it is
        **{key: paths_as_data(value) for key, value in overrides.items()},
    )
    try:
        workflow.initialize()
        try:
            return workflow.run()
        finally:
            workflow.finalize()
    except Exception as error:
        if _refused(error):
            undo()
        raise
