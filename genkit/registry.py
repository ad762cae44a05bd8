"""Registries: a name in a recipe becomes an object, and every wrong name or option gets a clear error.

    COUPLINGS = Registry(Coupling, "coupling", "genkit.couplings")

    @COUPLINGS.register("antithetic")
    class Antithetic(Coupling): ...

    COUPLINGS.build("ot"), COUPLINGS.build({"name": "distilled", "noise": 0.05}), COUPLINGS.names()

Options are the arguments of the class's constructor, checked by name and by annotated type. An option
annotated with the base class of another registry is itself a name or a mapping, and is checked the same way.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, Union

from genkit.errors import GenkitError, a, choose, within

T = TypeVar("T")


class Registry(Generic[T]):
    """The named classes of one kind. `package` is imported, module by module, when they are first asked for.

    given: leading constructor arguments that the builder passes by position and that are no options.
    """

    by_base: ClassVar[dict[type, Registry[Any]]] = {}

    def __init__(self, base: type[T], kind: str, package: str, *, given: int = 0) -> None:
        self.base, self.kind, self.package, self.given = base, kind, package, given
        self._entries: dict[str, type[T]] = {}
        self._loaded = False
        Registry.by_base[base] = self

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator.

        Raises GenkitError for a taken name, a class of another kind, and one whose methods are missing or cannot be
        called as those of the base class.
        """

        def add(cls: type[T]) -> type[T]:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise GenkitError(f"{self.kind} '{name}': {cls!r} is not a subclass of {self.base.__name__}")
            if not cls.__module__.startswith(f"{self.package}."):
                self._all()  # a plug-in: the package's own names are taken
            taken = self._entries.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (
                cls.__module__,
                cls.__qualname__,
            ):
                raise GenkitError(f"{self.kind} '{name}' is already registered by {taken.__module__}")
            check_methods(cls, self.base, f"{self.kind} '{name}'", given=self.given)
            self._entries[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        return sorted(self._all())

    def without_options(self) -> list[str]:
        """The names that can be built with no option given."""
        return [name for name in self.names() if all(p.default is not p.empty for p in self._options(name))]

    def _options(self, name: str) -> list[inspect.Parameter]:
        return list(inspect.signature(self.get(name)).parameters.values())[self.given :]

    def get(self, name: str) -> type[T]:
        if not isinstance(name, str) or name not in self._all():
            raise choose(name, self._all(), self.kind)
        return self._entries[name]

    def summary(self, name: str) -> str:
        """The first line of the class's own docstring."""
        return inspect.cleandoc(self.get(name).__doc__ or "").partition("\n")[0]

    def describe(self, name: str) -> str:
        """The name with its options and their defaults, and the whole docstring."""
        options = ", ".join(map(str, self._options(name)))
        return f"{name}({options})\n\n{inspect.cleandoc(self.get(name).__doc__ or '')}"

    def name_of(self, obj: T) -> str:
        """The name under which the class of `obj` is registered."""
        return next(name for name, cls in self._all().items() if type(obj) is cls)

    def check(self, spec: object, where: str = "") -> None:
        """Raises GenkitError unless `spec` (a name, or a mapping with `name` and options) can be built."""
        self.resolve(spec, where)

    def resolve(self, spec: object, where: str = "") -> dict[str, Any]:
        """`spec`, checked, as a mapping with `name` and every option, defaults filled in."""
        name, options = self._split(spec, where)
        with within(where) if where else nullcontext():
            cls = self.get(name)
        return {
            "name": name,
            **resolve_options(cls, options, where or f"{self.kind} '{name}'", given=self.given),
        }

    def build(self, spec: object, *args: Any, **options: Any) -> T:
        """An instance from a name, a mapping, or an instance (returned as it is)."""
        if isinstance(spec, self.base):
            if options:
                raise GenkitError(f"options {sorted(options)} given beside a built {self.kind}")
            return spec
        name, found = self._split(spec, "")
        found.update(options)
        cls = self.get(name)
        check_options(cls, found, f"{self.kind} '{name}'", given=self.given)
        return cls(*args, **found)

    def _split(self, spec: object, where: str) -> tuple[str, dict[str, Any]]:
        if isinstance(spec, str):
            return spec, {}
        if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
            return spec["name"], {key: value for key, value in spec.items() if key != "name"}
        place = f"{where}: " if where else ""
        raise GenkitError(f"{place}{a(self.kind)} is a name or a mapping with `name`, not {spec!r}")

    def _all(self) -> dict[str, type[T]]:
        if not self._loaded:
            self._loaded = True  # before the imports: a module may ask for a name while it is loaded
            try:
                package = importlib.import_module(self.package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self.package}.{module.name}")
            except BaseException:
                self._loaded = False
                raise
        return self._entries


def check_methods(cls: type, base: type, where: str, *, given: int = 0) -> None:
    """Raises GenkitError unless `cls` has the methods of `base`, and those that abstract classes between the two ask
    for, each of which can be called as theirs, and a constructor that takes `given` arguments by position, and its
    options by name."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise GenkitError(f"{where}: {cls.__name__} does not define {', '.join(missing)}")
    between = [parent for parent in cls.__mro__[1:] if issubclass(parent, base) and parent is not base]
    asked = [
        (p, name)
        for p in between
        for name in vars(p)
        if getattr(vars(p)[name], "__isabstractmethod__", False)
    ]
    for owner, name in [*asked, *((base, name) for name in vars(base))]:
        ours, theirs = vars(owner)[name], getattr(cls, name)
        if not inspect.isfunction(ours) or theirs is ours or name == "__init__":
            continue
        parameters = [p for p in inspect.signature(ours).parameters.values() if p.kind is not p.VAR_KEYWORD]
        for some in (parameters, [p for p in parameters if p.default is p.empty]):
            keywords = {p.name: None for p in some if p.kind is p.KEYWORD_ONLY}
            try:
                inspect.signature(theirs).bind(*[None] * (len(some) - len(keywords)), **keywords)
            except (TypeError, ValueError) as error:
                raise GenkitError(
                    f"{where}: {cls.__name__}.{name}{_plain(theirs)} must be callable as "
                    f"{owner.__name__}.{name}{_plain(ours)}: {error}"
                ) from None
    constructor = inspect.signature(cls)
    if loose := [p for p in constructor.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]:
        raise GenkitError(
            f"{where}: the constructor of {cls.__name__} takes {loose[0]}: name its options, one by one"
        )
    try:
        constructor.bind_partial(*[None] * given)
    except TypeError:
        raise GenkitError(
            f"{where}: the constructor of {cls.__name__} must take {given} argument{'s' * (given > 1)} by position, "
            f"before its options, and is {_plain(cls)}"
        ) from None


def _plain(function: Any) -> str:
    """The signature without annotations."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return f", which is {function!r},"
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


def check_options(cls: type, options: Mapping[str, Any], where: str, *, given: int = 0) -> None:
    """Raises GenkitError unless `options` fit the constructor of `cls`.

    given: leading constructor arguments that are passed by position and so are no options.
    Unknown keys name the nearest valid one; values are checked against the annotation; options without a
    default must be there.
    """
    parameters = list(inspect.signature(cls).parameters.values())[given:]
    accepted = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    for key, value in options.items():
        if key not in accepted:
            error = choose(key, accepted, "option")
            raise GenkitError(f"{where}: {error}")
        if key in hints:
            check_value(hints[key], value, f"{where}: {key}")
    for name, parameter in accepted.items():
        if parameter.default is parameter.empty and name not in options:
            raise GenkitError(f"{where}: the option '{name}' is missing")


def resolve_options(cls: type, options: Mapping[str, Any], where: str, *, given: int = 0) -> dict[str, Any]:
    """`options`, checked (see `check_options`), with defaults filled in, also those of nested registries."""
    check_options(cls, options, where, given=given)
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    resolved = {}
    for p in list(inspect.signature(cls).parameters.values())[given:]:
        value = options.get(p.name, p.default)
        registry = nested_registry(hints.get(p.name), value)
        if registry is not None:
            value = registry.resolve(value, f"{where}: {p.name}")
        if type(value) is int and _fits(hints.get(p.name), 0.5):
            value = float(value)  # 1 and 1.0 are the same recipe
        resolved[p.name] = list(value) if isinstance(value, tuple) else value
    return resolved


def nested_registry(hint: Any, value: Any) -> Registry[Any] | None:
    """The registry that a name or mapping belongs to, by the annotation of its option."""
    if isinstance(value, (str, Mapping)):
        for part in _alternatives(hint):
            if part in Registry.by_base:
                return Registry.by_base[part]
    return None


def check_value(hint: Any, value: Any, where: str) -> None:
    """Raises GenkitError unless `value` fits the annotation `hint`; recurses into registries and containers."""
    registry = nested_registry(hint, value)
    if registry is not None:
        registry.check(value, where)
    elif not _fits(hint, value):
        raise GenkitError(f"{where} must be {_words(hint)}, not {value!r}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in args)
    if hint is Any:
        return True
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in args)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and Ellipsis not in args:
            return len(value) == len(args) and all(map(_fits, args, value))
        return all(_fits(args[0], element) for element in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint is None or hint is type(None):
        return value is None
    return not isinstance(hint, type) or isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in args))
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in args)
    if hint is None or hint is type(None):
        return "null"
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return plain.get(hint, str(hint) if origin else getattr(hint, "__name__", str(hint)))


GROUP = "genkit.plugins"  # of entry points
PLUGINS: dict[str, str] = {}  # module -> SHA-256 (hex) of its file, of an installed plug-in of all its files
INSTALLED: dict[str, str] = {}  # module -> the name of its entry point


def plugins_behind(names: set[str]) -> dict[str, str]:
    """The plug-ins that registered any of these names, each with the SHA-256 (hex) of what it is."""
    entries = (entry for registry in Registry.by_base.values() for entry in registry._entries.items())
    modules = {cls.__module__ for name, cls in entries if name in names and cls.__module__ in PLUGINS}
    return {_plugin_of(module): PLUGINS[module] for module in sorted(modules)}


def _plugin_of(module: str) -> str:
    return INSTALLED.get(module, module.removeprefix("genkit_plugin_"))


def load_plugin(path: str | Path) -> str:
    """Runs a Python file, so that what it registers can be used; returns the name a recipe has for it.

    Raises GenkitError for a file that is missing or does not import, and for what it registers (see `register`).
    """
    path = Path(path)
    if not path.is_file():
        raise GenkitError(f"--plugin {path}: no such file")
    name = f"genkit_plugin_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise GenkitError(f"--plugin {path}: a plug-in is a Python file (.py)")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    PLUGINS[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with _importing(f"--plugin {path}"):
            module_spec.loader.exec_module(module)
    except GenkitError:
        del sys.modules[name]
        raise
    return path.stem


def load_installed() -> list[str]:
    """Imports the plug-ins of installed packages (entry points of the group `genkit.plugins`); returns their names.

    Raises GenkitError for one that does not import, and for what it registers.
    """
    found = []
    for point in importlib.metadata.entry_points(group=GROUP):
        with _importing(f"--trust-plugins: the plug-in '{point.name}' ({point.value})"):
            point.load()
        top = point.module.partition(".")[0]
        entries = [cls.__module__ for r in Registry.by_base.values() for cls in r._entries.values()]
        modules = sorted({point.module, *(name for name in entries if name.partition(".")[0] == top)})
        digest = hashlib.sha256()
        for name in modules:
            file = getattr(sys.modules[name], "__file__", None)
            digest.update(Path(file).read_bytes() if file else b"")
        for name in modules:
            PLUGINS[name], INSTALLED[name] = digest.hexdigest(), point.name
        found.append(point.name)
    return found


@contextmanager
def _importing(what: str) -> Iterator[None]:
    """What a plug-in raises becomes a GenkitError that says which plug-in it was."""
    try:
        yield
    except GenkitError as error:
        raise GenkitError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise GenkitError(f"{what} does not import: {type(error).__name__}: {error}") from error


def plugin_loaded(name: str) -> bool:
    """Whether a plug-in of that name, a file or an installed one, was run in this process."""
    return any(_plugin_of(module) == name and module in sys.modules for module in PLUGINS)


def how_to_load(name: str) -> str:
    """The flag that runs the plug-in `name`. Reads what is installed, and runs nothing."""
    if name in importlib.metadata.entry_points(group=GROUP).names:
        return "it is installed: give --trust-plugins (or load(..., trust_plugins=True))"
    return (
        "give --plugin FILE (or load(..., plugins=[FILE])), or install the package that has it and give "
        "--trust-plugins"
    )
