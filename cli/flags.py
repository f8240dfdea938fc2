"""Dataclasses <-> flags <-> JSON, a file of settings, and what a saved run overrides.

A group of flags is a dataclass derived from `Settings`, each of its fields a line made by `flag`. That line is all that
is ever said of a setting: its default, help, bounds and choices, what it requires, whether it may change on --resume.
The checks are made whenever a group is constructed, so they hold for the shell, for a saved run and for a test alike.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
import typing
from dataclasses import dataclass, field, fields
from types import UnionType

from cli.near import did_you_mean
from cli.settings_file import read_settings
from errors import UserError, check

WIDTH = 80  # columns of --help
# --- what a line can say ----------------------------------------------------------------------------------------------


def flag(default, help, allowed=None, **options):
    """A dataclass field that becomes a flag --NAME.

    allowed: an interval as text, "[0, 1)", or the values that can be chosen (for a tuple those of its entries).
    Options, any of which the class can set for all of its fields (`class Group(Settings, requires=...)`):
    zero: what 0 means; why: a reason to be told beside an interval.
    names: (noun, allowed words) of a comma-separated text.
    requires: (other field, value, ...): the flag means something only where that field has one of these values, and is
    refused otherwise, so that no flag is ever silently ignored.
    idle_from: a field of the same group; from its value on the flag means nothing, and is refused likewise.
    idle_with: {other field: values}: where all of them have one of these values the flag means nothing, likewise.
    shorthand_of: (field of the same group, entry): the flag is short for that entry of that tuple; nothing: what the
    tuple is called when it is empty.
    instead_of: a field of the same group that this one replaces; typing that one drops this one's saved value, typing
    both is refused.
    free_on_resume: --resume may change it, or only "after divergence". training_only: refused where nothing is trained.
    reads: a file or folder that must be there; a run that has moved finds it by its place beside the run.
    also: another spelling of the flag's name. elsewhere: what others call it, words, for "did you mean".
    from_flags: "always", or "when predicting" (--checkpoint): it comes from the flags, not from the saved run. (What is
    training_only cannot be typed with --checkpoint, and is always what the run says.)
    """
    kind = "bounds" if isinstance(allowed, str) else "choices"
    return field(default=default, metadata={"help": help, kind: allowed} | options)


@typing.dataclass_transform(field_specifiers=(flag,))
class Settings:
    """A group of flags. What is derived from it is a dataclass; its docstring is the group's heading in --help."""

    options: typing.ClassVar[dict] = {}

    def __init_subclass__(cls, **options):
        cls.options = cls.options | options
        dataclass(cls)

    def __post_init__(self):
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type is tuple and isinstance(value, list):  # as JSON has it
                setattr(self, setting.name, value := tuple(value))
            _check_value(type(self), setting, value)
        self.relate()

    def relate(self):
        """Raise UserError where two settings do not fit each other; for derived classes."""

    def expanded(self, name):
        """The entries of a tuple setting and of the shorthands that are set, each once."""
        short = [option(self, s, "shorthand_of")[1] for s in _shorthands(self, name) if getattr(self, s.name)]
        return list(dict.fromkeys([*getattr(self, name), *short]))


def group(settings_class):
    """A field of a Script: a whole group of flags."""
    return field(default_factory=settings_class)


@typing.dataclass_transform(field_specifiers=(group,))
class Script:
    """All groups of a script. What is derived from it is a dataclass; its docstring is what --help begins with."""

    def __init_subclass__(cls):
        dataclass(cls)

    def __post_init__(self):
        self.relate()

    def relate(self):
        """Raise UserError where two groups do not fit each other; for derived classes."""


def option(group, setting, name):
    """What a field's line says of an option or, where it is silent, what its group says; else None."""
    return setting.metadata.get(name, group.options.get(name))


def _shorthands(group, name):
    return [s for s in fields(group) if (option(group, s, "shorthand_of") or [None])[0] == name]


def split_names(text):
    """The words of a comma-separated flag, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


# --- checks -----------------------------------------------------------------------------------------------------------

KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list of names"}


def _check_value(group, setting, value):
    name, kinds = f"--{setting.name}", _kinds(setting)
    if value is None and type(None) in kinds:
        return
    kind = next(kind for kind in kinds if kind is not type(None))
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    check(fits, f"{name} must be {KINDS[kind]}, got {value!r}")
    if choices := setting.metadata.get("choices"):
        for one in value if kind is tuple else (value,):
            near = did_you_mean(one, choices) if isinstance(one, str) else ""
            known = isinstance(one, str) and one in choices
            check(known, f"{name} must be one of {', '.join(choices)}, got {one!r}{near}")
    if bounds := setting.metadata.get("bounds"):
        wanted = (
            _in_words(bounds, option(group, setting, "zero")) if value not in (math.inf, -math.inf) else "be finite"
        )
        why = option(group, setting, "why")
        check(_inside(value, bounds), f"{name} must {wanted}, {f'{why}; ' if why else ''}got {value}")
    if allowed := option(group, setting, "names"):
        noun, words = allowed
        names, choose = split_names(value), f"choose from {','.join(words)}"
        unknown = [word for word in names if word not in words]
        near = did_you_mean(unknown[0], words) if unknown else ""
        check(not unknown, f"{name}: no {noun} {unknown}; {choose}{near}")
        check(names, f"{name} is empty; {choose}")


def _kinds(setting):
    return typing.get_args(setting.type) if isinstance(setting.type, UnionType) else (setting.type,)


def _inside(value, bounds):
    low, high = map(float, bounds[1:-1].split(","))
    return (value >= low if bounds[0] == "[" else value > low) and (
        value <= high if bounds[-1] == "]" else value < high
    )


def _in_words(bounds, zero):
    """What comes after "must"."""
    if zero:
        return f"be 0 ({zero}) or more"
    words = {"(0, inf)": "be positive", "[0, inf)": "not be negative", "(-inf, inf)": "be a number"}
    if bounds in words:
        return words[bounds]
    return f"be at least {bounds[1:].split(',')[0]}" if bounds.endswith("inf)") else f"be in {bounds}"


def check_outputs(data, outputs):
    """No output file of a data group may be another one of its files: it would be lost."""
    paths = {setting.name: getattr(data, setting.name) for setting in fields(data) if setting.type is str}
    for name in outputs:
        for other in paths.keys() - {name}:
            same = os.path.abspath(paths[name]) == os.path.abspath(paths[other])
            check(not same, f"--{name} and --{other} are the same file {paths[name]}: choose another")


# --- from the shell ---------------------------------------------------------------------------------------------------


def refuse_unused(options, used, doing):
    """Raise UserError for a typed flag that means nothing in what is done.

    options: argparse's, whose defaults are None, False or []. used: the names of those that mean something. doing: what
    is done, in words.
    """
    for name, value in vars(options).items():
        check(value in (None, False, []) or name in used, f"--{name} has no effect with {doing}: leave it out")


class FlagParser(argparse.ArgumentParser):
    """argparse's, but that --batch-size is --batch_size, and errors are one line that says what was perhaps meant.

    elsewhere: {what others call a flag: what it is here}.
    """

    elsewhere: typing.ClassVar[dict] = {}

    def parse_known_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([self._spelled(word) for word in words], namespace)

    def _spelled(self, word):
        """A flag with hyphens and underscores as it is known; everything else as it stands."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        known = {spelling.replace("-", "_"): spelling for spelling in self._option_string_actions}
        return known.get(name.replace("-", "_"), name) + equals + value

    def error(self, message):  # argparse would print the whole usage; the one line that matters would be lost in it
        raise UserError(f"{message}{self._meant(message)} (--help lists the flags)")

    def _meant(self, message):
        """A question for what the message complains of, or nothing."""
        if unknown := re.match(r"unrecognized arguments: (?:.*?--|-?)([\w-]+)", message):
            names = [spelling[2:] for spelling in self._option_string_actions if spelling.startswith("--")]
            if unknown[1].lower() in ("true", "false", "yes", "no", "1", "0"):
                return "; a switch takes no value: type it, or leave it out"
            return did_you_mean(unknown[1], names, self.elsewhere, "--")
        if wrong := re.match(r"argument .*: invalid (int|float) value", message):
            return {"int": "; give a whole number", "float": "; give a number such as 0.1 or 5e-5"}[wrong[1]]
        if wrong := re.match(r"argument ([\w-]+).*?: invalid choice: '?(.*?)'? \(choose from ", message):
            actions = [action for action in self._actions if wrong[1] in (*action.option_strings, action.dest)]
            return did_you_mean(wrong[2], [str(choice) for choice in actions[0].choices]) if actions else ""
        return ""


class Given(set):
    """The names of the flags that were given, typed or not. files: {name: the file of --settings that it is from}."""

    def __init__(self, names=(), files=None):
        super().__init__(names)
        self.files = files or {}


def called(name, given):
    """What a given flag is called in a message."""
    file = given.files.get(name) if isinstance(given, Given) else None
    return f"{name} (of {file})" if file else f"--{name}"


def parse_flags(settings_class, arguments=None):
    """Settings from the command line (or from a list of arguments), and from the file that --settings names there.

    settings_class: a dataclass whose fields are groups. Returns (settings, given): `given` (Given) holds the names of
    the flags that were typed, or stand in the file. Raises UserError.
    """
    typed = vars(_parser(settings_class).parse_args(arguments))
    file = typed.pop("settings", None)
    read = _from_file(settings_class, file, typed) if file else {}
    given = read | typed
    groups = {
        group.name: {s.name: given[s.name] for s in fields(group.type) if s.name in given}
        for group in fields(settings_class)
    }
    try:
        _refuse_idle_flags(settings_class, given)
        settings = settings_from_dict(settings_class, groups)
    except UserError as error:
        subject = re.search(r"--(\w+)", str(error))
        if not read or (subject and subject[1] in typed):
            raise
        raise UserError(f"{file}: {error}") from error
    return settings, Given(given, dict.fromkeys(read, file))


def _parser(settings_class):
    """All flags of a script, in their groups."""
    parser = FlagParser(
        usage="%(prog)s [--FLAG VALUE ...]",
        description=settings_class.__doc__,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=WIDTH),
        argument_default=argparse.SUPPRESS,  # absent flags stay absent: the dataclasses know the defaults
        allow_abbrev=False,
    )
    parser.elsewhere = _elsewhere(settings_class)
    parser.add_argument(
        "--settings",
        metavar="FILE",
        help="more flags from a file, TOML (NAME = VALUE) or a run's settings.json; typed ones win",
    )
    for group in sorted(fields(settings_class), key=lambda group: group.name != "data"):  # the data first
        title, _, description = " ".join(group.type.__doc__.split()).partition(": ")
        section = parser.add_argument_group(title, description or None)
        for setting in fields(group.type):
            spellings = [f"--{name}" for name in (setting.name, setting.metadata.get("also")) if name]
            section.add_argument(*spellings, **_argparse_options(setting))
    return parser


def _from_file(settings_class, path, typed):
    """What a file of settings gives, {name: value}, but for what typed flags replace. Raises UserError."""
    values, of_a_run = read_settings(path)
    everything = _all_settings(settings_class)
    found = {}
    for name, value in values.items():
        if name not in everything:
            near = did_you_mean(name, everything, _elsewhere(settings_class), "--")
            raise UserError(f"{path}: there is no flag --{name} here{near} (--help lists the flags)")
        group, setting = everything[name]
        try:
            value = _as_typed(group, setting, value)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if of_a_run and (value == setting.default or option(group, setting, "from_flags") == "always"):
            continue  # a run's record names every flag, and its own folder
        replacing = {name, option(group, setting, "instead_of")} | _family(group, setting)
        if not replacing & typed.keys():
            found[name] = value
    return found


def _as_typed(group, setting, value):
    """A value from a file as a typed flag would have it. Raises UserError."""
    value = tuple(value) if setting.type is tuple and isinstance(value, list) else value
    _check_value(group, setting, value)
    try:
        return float(value) if isinstance(value, int) and float in _kinds(setting) else value
    except OverflowError as error:
        raise UserError(f"--{setting.name} must be a number that a float can hold: give a smaller one") from error


def _family(group, setting):
    """A tuple setting and its shorthands, for any of them; of one without, nothing."""
    whole = (option(group, setting, "shorthand_of") or [setting.name])[0]
    short = {other.name for other in _shorthands(group, whole)}
    return {whole} | short if short else set()


def _all_settings(settings_class):
    """{name: (its group's class, the field)} of every flag of a script."""
    return {s.name: (group.type, s) for group in fields(settings_class) for s in fields(group.type)}


def _elsewhere(settings_class):
    """{what others call a flag: what it is here} of a script."""
    settings = [setting for _, setting in _all_settings(settings_class).values()]
    return {word: setting.name for setting in settings for word in setting.metadata.get("elsewhere", "").split()}


def _argparse_options(setting):
    help_text = setting.metadata["help"].replace("%", "%%")
    if setting.type is bool:
        return {"action": "store_true", "help": help_text}
    if setting.type is tuple:
        help_text += f" (default: {' '.join(setting.default)})" if setting.default else ""
        return {"nargs": "+", "choices": tuple(setting.metadata["choices"]), "metavar": "NAME", "help": help_text}
    if setting.default not in (None, ""):
        help_text += f" (default: {setting.default})"
    kind = _kinds(setting)[0]
    options = {"type": kind, "help": help_text}
    if setting.metadata.get("choices") and not setting.metadata.get("also"):  # argparse repeats them for each spelling
        return options | {"choices": tuple(setting.metadata["choices"])}
    return options | {"metavar": {int: "N", float: "X", str: "TEXT"}[kind]}


def _refuse_idle_flags(settings_class, given):
    everything = _all_settings(settings_class)
    for name in (name for name in given if name in everything):
        _check_required(everything, name, given)
        idle = option(*everything[name], "idle_with") or {}
        now = {other: given.get(other, everything[other][1].default) for other in idle}
        if idle and all(now[other] in values for other, values in idle.items()):
            known = any(_run_says(*everything[other], given) for other in idle)
            those = " ".join(f"--{other} {value}" for other, value in now.items())
            check(known, f"--{name} has no effect with {those}: leave one of them out")
        replaced = option(*everything[name], "instead_of")
        check(replaced not in given, f"--{name} stands in the place of --{replaced}: give one of them")
        bound = option(*everything[name], "idle_from")
        if bound and (bound in given or not {"resume", "checkpoint"} & given.keys()):  # else a run knows the bound
            most = given.get(bound, everything[bound][1].default)
            check(given[name] < most, f"--{name} {given[name]} has no effect with --{bound} {most}: give a smaller one")


def _check_required(everything, name, given):
    """Raise UserError where what a flag requires, or what that one requires in turn, is not chosen."""
    step = name
    while requires := option(*everything[step], "requires"):
        if _run_says(*everything[requires[0]], given):
            return  # `take_over` looks at what the run says
        if not set(_chosen(*everything[requires[0]], given)) & set(requires[1:]):
            switch = f"--{requires[0]} {'|'.join(requires[1:])}"
            raise UserError(f"--{name} has no effect without {switch}: add it, or leave the flag out")
        step = requires[0]


def _run_says(group, setting, given):
    """Whether a saved run brings this setting along, so that it need not be typed again."""
    source, typed = option(group, setting, "from_flags"), _family(group, setting) | {setting.name}
    goes_on = "checkpoint" in given or given.get("resume", False)
    return goes_on and not typed & given.keys() and not (source == "when predicting" and "checkpoint" in given)


def _chosen(group, setting, given):
    """The values that a setting has, shorthands counted in: usually one."""
    value = given.get(setting.name, setting.default)
    short = [option(group, s, "shorthand_of")[1] for s in _shorthands(group, setting.name) if given.get(s.name)]
    return [*value, *short] if setting.type is tuple else [value]


# --- JSON and back ----------------------------------------------------------------------------------------------------


def settings_from_dict(settings_class, values):
    """The inverse of `settings_to_dict`: nested settings, as kept in a run's settings.json. Raises UserError."""
    groups = {}
    for group in fields(settings_class):
        saved = values.get(group.name, {})
        check(isinstance(saved, dict), f"the settings of group {group.name} are no object, but {saved!r}")
        unknown = set(saved) - {setting.name for setting in fields(group.type)}
        check(not unknown, f"unknown settings {sorted(unknown)} in group {group.name}")
        groups[group.name] = group.type(**saved)
    return settings_class(**groups)


def settings_to_dict(settings):
    return dataclasses.asdict(settings)


# --- what a saved run overrides ---------------------------------------------------------------------------------------


def refuse_training_flags(settings, given):
    """Raise UserError for a typed flag that means nothing where nothing is trained."""
    for group in fields(settings):
        for setting in fields(group.type):
            if setting.name in given and option(group.type, setting, "training_only"):
                flag = called(setting.name, given)
                raise UserError(f"{flag} has no effect with --checkpoint, which trains nothing: leave it out")


@dataclass(frozen=True)
class GoingOn:
    """How a saved run is gone on with.

    source: what it is called in messages. given: the names of the flags that were typed. predicting: nothing will be
    trained. diverged: it ended in numbers that are not finite.
    """

    source: str
    given: set
    predicting: bool = False
    diverged: bool = False

    def is_free(self, group, setting):
        """Whether a typed flag may differ from the saved value."""
        free = option(group, setting, "free_on_resume")
        return free is True or (free == "after divergence" and self.diverged)

    def ignores(self, group, setting):
        """Whether the saved value means nothing here: the flags alone say it."""
        source = option(group, setting, "from_flags")
        said_by_flags = self.predicting and not option(group, setting, "training_only")  # which cannot be typed then
        return source == "always" or (source == "when predicting" and said_by_flags)


def take_over(saved, settings, how):
    """The settings of a saved run, changed by what the user typed: new settings.

    saved: as from `settings_to_dict`. settings: the user's. how: GoingOn. A typed flag must agree with the saved value
    unless it is free. Raises UserError.
    """
    merged = settings_to_dict(settings)
    for group in fields(settings):
        known = saved.get(group.name, {})
        check(isinstance(known, dict), f"{how.source}/settings.json is damaged: its group {group.name} is {known!r}")
    _refuse_idle_in(saved, settings, how)
    for group in fields(settings):
        merged[group.name] |= _agreed(group.type, saved.get(group.name, {}), merged[group.name], how)
    try:
        return settings_from_dict(type(settings), merged)
    except UserError as error:
        raise UserError(f"{how.source}/settings.json does not fit this version of the project: {error}") from error


def _refuse_idle_in(saved, settings, how):
    """Raise UserError for a typed flag that means nothing with what the saved run says."""
    everything, groups = _all_settings(type(settings)), {s: g.name for g in fields(settings) for s in _names(g.type)}
    for name in sorted(how.given & everything.keys()):
        requires = option(*everything[name], "requires")
        if not requires:
            continue
        group, setting = everything[requires[0]]
        known = saved.get(groups[requires[0]], {})
        typed = ({setting.name} | _family(group, setting)) & how.given
        if typed or how.ignores(group, setting) or setting.name not in known:
            continue  # then the flags say it, and were checked
        if not set(_chosen(group, setting, known)) & set(requires[1:]):
            free = how.is_free(group, setting)
            switch = f"--{requires[0]} {'|'.join(requires[1:])}"
            chosen = " and ".join(_chosen(group, setting, known)) or option(group, setting, "nothing") or "none"
            raise UserError(
                f"{called(name, how.given)} has no effect without {switch}, and {how.source} has {chosen}: "
                + ("add it, or leave the flag out" if free else "leave the flag out")
            )


def _names(group):
    return [setting.name for setting in fields(group)]


def _agreed(group, saved, typed, how):
    """The values of one group that the saved run brings."""
    values, settings = {}, {setting.name: setting for setting in fields(group)}
    given = how.given - _same_entries(group, saved, typed, how)
    for name, value in saved.items():
        setting = settings.get(name)
        if setting is None:
            values[name] = value  # which `settings_from_dict` refuses
        elif how.ignores(group, setting) or option(group, setting, "instead_of") in given:
            continue
        elif name not in given:
            values[name] = value
        elif not how.is_free(group, setting) and typed[name] != value:
            flag = called(name, how.given)
            raise UserError(f"{how.source} was trained with {name} = {value}, not {typed[name]}: leave {flag} out")
    return values


def _same_entries(group, saved, typed, how):
    """The typed flags that name the saved entries of a tuple, perhaps by shorthands. Raises UserError for others."""
    same = set()
    for setting in fields(group):
        members = {setting.name, *(short.name for short in _shorthands(group, setting.name))}
        if len(members) > 1 and how.given & members:
            theirs, ours = (
                group(**{name: values[name] for name in members & values.keys()}).expanded(setting.name)
                for values in (saved, typed)
            )
            if set(ours) != set(theirs):
                trained = " and ".join(theirs) or option(group, setting, "nothing")
                flags = " and ".join(called(name, how.given) for name in sorted(how.given & members))
                raise UserError(f"{how.source} was trained with {trained}, not {' and '.join(ours)}: leave {flags} out")
            same |= members
    return same
