"""A config dataclass as command-line options and as a YAML file, so that an option is declared once.

A field `bin_length: int = 0` is the option `--bin-length`; the text under the field is its help; `Literal` gives
choices, `bool` a pair of flags, `Switch` both, `tuple[str, ...]` an option that may be repeated. Whatever the command
line does not set is taken from `--config FILE.yaml`, and then from the field's default. Unknown keys and wrong types
are usage errors that name the key.
"""

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from omniprep.config import MOST_TOKENS, Switch, Trust, Workers
from omniprep.errors import UsageError, did_you_mean
from omniprep.observe.options import ObserveOptions

Config = TypeVar("Config")
Command = TypeVar("Command", bound=Callable[..., Any])
OBSERVED = "omniprep.observed"
"""Where the context of a command keeps its values of `ObserveOptions`."""
SUFFIXES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
SUFFIXES |= {f"{mark}i": 1024**power for power, mark in enumerate("kmgt", 1)}


def read_bytes_option(value: str) -> int:
    """Parse a number of bytes, with or without a unit: 1000000, 512MiB, 2GB."""
    text = str(value).strip().lower().removesuffix("b")
    digits = text.rstrip("kmgti ")
    try:
        count = int(float(digits) * SUFFIXES[text[len(digits) :].strip()])
        if count >= 0:
            return count
        raise ValueError("negative")
    except (ValueError, KeyError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is not a number of bytes, such as 1000000 or 512MiB") from error


def read_workers_option(value: str) -> "int | str":
    """Parse a number of workers: auto, or a number."""
    text = str(value).strip().lower()
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither auto nor a number of workers") from error


def is_bytes(field: str) -> bool:
    """Whether a field holds a number of bytes: --shard-size and --max-line-bytes, not --batch-size."""
    return field.endswith(("_size", "_bytes")) and field != "batch_size"


def _record_classes(cls: type) -> list[type]:
    """A dataclass and its bases that are dataclasses: its own fields are shown before those that it inherits."""
    return [part for part in cls.__mro__ if "__dataclass_fields__" in part.__dict__]


def _ordered_fields(cls: type) -> "list[dataclasses.Field[Any]]":
    known = {field.name: field for field in dataclasses.fields(cls)}
    names = [name for part in _record_classes(cls) for name in inspect.get_annotations(part) if name in known]
    return [known[name] for name in dict.fromkeys(names)]


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a class, read from its source since Python does not keep it."""
    docs: dict[str, str] = {}
    for part in _record_classes(cls):
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(body, ast.ClassDef)
        for item, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(after, ast.Expr):
                value = after.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    docs[item.target.id] = inspect.cleandoc(value.value)
    return docs


def option_name(field: str) -> str:
    """`bin_length` as it is typed: `--bin-length`."""
    return "--" + field.replace("_", "-")


def plain_type(hint: Any) -> Any:
    """The type behind `X | None`."""
    if hint == Workers:
        return hint
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def click_type(name: str, hint: Any) -> "click.ParamType[Any, Any]":
    """How click reads a field's value."""
    if get_origin(hint) is Literal:
        return click.Choice([str(choice) for choice in get_args(hint)])
    if hint == Workers:
        return click.types.FuncParamType(read_workers_option)
    if name == "bin_length":  # 0 is the default, which means that none was given
        return click.IntRange(1, MOST_TOKENS)
    if hint is int and is_bytes(name):
        return click.types.FuncParamType(read_bytes_option)
    if hint is int:
        return click.INT
    return click.FLOAT if hint is float else click.STRING


def default_text(field: "dataclasses.Field[Any]") -> str:
    """The default as --help shows it; empty for empty defaults."""
    value = field.default
    if value in (None, "", (), 0) or isinstance(value, bool) or value is dataclasses.MISSING:
        return ""
    return f"  [default: {value}]"


def options_of(cls: type, *, skip: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Decorator that gives a click command one option for each field of `cls`, and `--config`.

    The command receives each as a keyword: None (or an empty tuple) where the option was not given.
    """

    def decorate(command: Command) -> Command:
        path = click.Path(exists=True, dir_okay=False)
        config = click.option("--config", type=path, help="YAML file with any of these options; flags win.")
        return config(field_options(cls, skip=skip)(command))

    return decorate


def field_options(cls: type, *, skip: tuple[str, ...] = (), **more: Any) -> Callable[[Any], Any]:
    """Decorator that gives a click command one option for each field of `cls`; `more` goes to each `click.option`."""
    hints, docs = get_type_hints(cls), field_docs(cls)

    def option(field: "dataclasses.Field[Any]") -> Callable[[Any], Any]:
        name, hint = option_name(field.name), plain_type(hints[field.name])
        text = docs.get(field.name, "") + default_text(field)
        if hint is bool:
            return click.option(f"{name}/--no-{name[2:]}", field.name, default=None, help=text, **more)
        if get_origin(hint) is tuple:
            return click.option(name, field.name, multiple=True, help=text, **more)
        metavar = "BYTES" if is_bytes(field.name) else "auto|N" if hint == Workers else None
        kind = click_type(field.name, hint)
        if hint == Switch:
            text += f"  {name} alone is on, --no-{name[2:]} is off."
            return click.option(name, field.name, type=kind, default=None, help=text, cls=SwitchOption, **more)
        return click.option(name, field.name, type=kind, metavar=metavar, default=None, help=text, **more)

    def decorate(command: Any) -> Any:
        for field in reversed(_ordered_fields(cls)):
            if field.name not in skip:
                command = option(field)(command)
        return command

    return decorate


class SwitchOption(click.Option):
    """An option of the type `Switch`, which may also be given as a flag."""


def with_switch_values(params: Sequence[click.Parameter], args: Sequence[str]) -> list[str]:
    """Arguments with each `--NAME` of a switch that stands alone as `--NAME=on`, each `--no-NAME` as `--NAME=off`."""
    names = {name for param in params if isinstance(param, SwitchOption) for name in param.opts}
    off = {f"--no-{name[2:]}": f"{name}=off" for name in names}
    end = args.index("--") if "--" in args else len(args)
    written = list(args)
    for position, argument in enumerate(args[:end]):
        following = args[position + 1] if position + 1 < end else ""
        if argument in off:
            written[position] = off[argument]
        elif argument in names and following not in ("auto", "on", "off"):
            written[position] = f"{argument}=on"
    return written


def trust_options(command: Command) -> Command:
    """Decorator that adds the flags of `Trust` to a command, which receives them as keywords for `Trust(**...)`."""
    docs, chosen = field_docs(Trust), command
    for field in reversed(dataclasses.fields(Trust)):
        name = option_name(field.name)
        if field.type is bool or field.type == "bool":
            chosen = click.option(name, field.name, is_flag=True, help=docs[field.name])(chosen)
        else:
            chosen = click.option(name, field.name, multiple=True, help=docs[field.name])(chosen)
    return chosen


def make_config(cls: type[Config], given: Mapping[str, Any], config_file: str | None) -> Config:
    """Make the config: command-line values win over those of the YAML file, which win over defaults.

    Args:
        cls: The config dataclass.
        given: Values of the command line; None and empty tuples mean "not set".
        config_file: Path of a YAML file, or None.

    Raises:
        UsageError: Unknown key, wrong type, or a value that the class itself refuses.
    """
    values = read_config(cls, config_file) if config_file else {}
    values |= {name: value for name, value in given.items() if value is not None and value != ()}
    return cls(**values)


def read_config(cls: type, path: str) -> dict[str, Any]:
    """The options of a YAML file: a mapping from option names (with dashes or underscores) to values.

    Those of `ObserveOptions` are kept for the command's reporter, unless the command line gives them.
    """
    content = yaml_value(Path(path).read_bytes(), path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected options as 'name: value', found a {type(content).__name__}")
    names = {field.name for field in dataclasses.fields(ObserveOptions)}
    observed = {key: value for key, value in content.items() if str(key).replace("-", "_") in names}
    if observed and (ctx := click.get_current_context(silent=True)) is not None:
        given = ctx.meta.setdefault(OBSERVED, {})
        given |= {**check_values(ObserveOptions, path, observed), **given}
        ObserveOptions(**given)  # says at once what could not work
    return check_values(cls, path, {key: value for key, value in content.items() if key not in observed})


def yaml_value(text: str | bytes, where: str) -> Any:
    """Parse YAML of the command line or of a file that it names; UsageError names `where`."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from error


def check_values(cls: type, where: str, content: Mapping[Any, Any]) -> dict[str, Any]:
    """Options by name, checked against the fields of `cls`; UsageError for an unknown name or wrong type."""
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise UsageError(f"{where}: no option {key!r}{did_you_mean(name, hints)}")
        values[name] = convert(f"{where}: {key}", name, hints[name], value)
    return values


def convert(where: str, name: str, hint: Any, value: Any) -> Any:
    """Check one YAML value against the field's type; a single value is accepted where a list is meant."""
    kind = plain_type(hint)
    kind_name = "int or auto" if kind == Workers else getattr(kind, "__name__", "one value")
    if value is None and kind is not hint:
        return None
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) or item is None for item in items):
            raise UsageError(f"{where}: expected a list of texts, found {value!r}")
        return tuple(str(item) for item in items)
    if kind == Switch and isinstance(value, bool):  # YAML's on and off are booleans, as true and false are
        return "on" if value else "off"
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise UsageError(f"{where}: expected {'true or false' if kind is bool else kind_name}, found {value!r}")
    if (
        isinstance(value, dict | list)
        or value is None
        or (kind in (int, float, Workers) and isinstance(value, str) and not value)
    ):
        raise UsageError(f"{where}: expected {kind_name}, found {value!r}")
    try:
        return click_type(name, kind).convert(value if kind is not str else str(value), None, None)
    except click.BadParameter as error:
        raise UsageError(f"{where}: {error.message}") from error


_ARGUMENTS = {"inputs": "no INPUT", "data": "no DIR of a dataset"}
"""Fields that are arguments and no options, and what is said where they are absent."""


def require(command: str, config: object, names: tuple[str, ...]) -> None:
    """Check that none of the named fields is empty; UsageError names the missing option or argument."""
    for name in names:
        if not getattr(config, name):
            problem = _ARGUMENTS.get(name, f"{option_name(name)} is missing")
            raise UsageError(f"{problem}; see `omniprep {command} --help`")
