"""The command line: genkit train | sample | evaluate | info | compare | reproduce | benchmark | fit-grid |
list | check | new.

Exit status 0 when all went well, 1 when `check` finds a law broken, 2 for bad input (one message, no traceback),
130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from genkit.errors import GenkitError, Terminated, choose, printable, too_large, within
from genkit.processes import alone, locked, rank, together
from genkit.streams import hung_up, let_go, standard

if TYPE_CHECKING:
    from torch import Tensor

    from genkit.compare.runner import Comparison
    from genkit.recipe import Run
    from genkit.types import LogProb

REGISTRIES = {
    "objectives": ("genkit.objectives", "OBJECTIVES"),
    "couplings": ("genkit.couplings", "COUPLINGS"),
    "paths": ("genkit.paths", "PATHS"),
    "times": ("genkit.paths", "TIMES"),
    "solvers": ("genkit.solvers", "SOLVERS"),
    "grids": ("genkit.solvers", "GRIDS"),
    "schedules": ("genkit.paths", "SCHEDULES"),
    "unmaskers": ("genkit.unmasking", "UNMASKERS"),
    "guidances": ("genkit.guidance", "GUIDANCES"),
    "inverters": ("genkit.inversion", "INVERTERS"),
    "datasets": ("genkit.data", "DATASETS"),
    "rewards": ("genkit.objectives.rewards", "REWARDS"),
    "targets": ("genkit.particles", "TARGETS"),
    "resamplers": ("genkit.particles", "RESAMPLERS"),
    "moves": ("genkit.particles", "MOVES"),
    "metrics": ("genkit.metrics", "METRICS"),
}


class Parser(argparse.ArgumentParser):
    """Says which option or command is nearest to an unknown one, and takes no empty words for none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self.register("type", None, filled)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.check_flags(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def check_flags(self, words: Sequence[str]) -> None:
        """Ends with status 2 at the first word that stands for an option and is none, before what follows from it."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        valued = {flag for action in self._actions if action.nargs != 0 for flag in action.option_strings}
        for before, word in pairwise(("", *words)):
            if word == "--" or (self._subparsers and not word.startswith("-")):
                return  # what follows is no option, or one of a command
            if not re.match(r"-[^\d.]", word) or " " in word:
                continue
            name = word.partition("=")[0]
            if name not in flags and (name.startswith("--") or name[:2] not in flags):
                if before in valued and not word.startswith("--"):
                    self.error(f"a value that begins with a dash is given as {before}={word}")
                overrides = any(action.metavar == "key=value" for action in self._actions)
                hint = "; values are set without dashes, by key=value" if overrides else ""
                self.error(f"{choose(name, flags, 'option')}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            word = str(action.metavar or "choice").lower()
            raise argparse.ArgumentError(None, str(choose(value, action.choices, word)))


def filled(text: str) -> str:
    """A word of the command line, and no empty one: an option that is left out has its default."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def path(text: str) -> Path:
    return Path(filled(text))


class Command(NamedTuple):
    """What a command is for, its options, and what it does."""

    help: str
    options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int | None]


PLACE: dict[str, Any] = {"default": "auto", "help": "cpu, cuda, ... (default: a GPU where there is one)"}
CHECKPOINT: dict[str, Any] = {
    "help": "other weights than the final ones: a step of training.snapshots, best, last, or a file .safetensors"
}
OVERRIDES: dict[str, Any] = {
    "nargs": "*",
    "metavar": "key=value",
    "help": "overrides, such as training.steps=500",
}


def parser() -> Parser:
    root = Parser(
        prog="genkit", description="Generative models with interchangeable objectives on one backbone."
    )
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers(dest="command", metavar="COMMAND")
    commands.type = str  # a command looks at its own words
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, description=command.help)
        one.add_argument(
            "--plugin",
            action="append",
            default=[],
            metavar="FILE",
            help="run a Python file that registers more entries",
        )
        one.add_argument(
            "--trust-plugins",
            action="store_true",
            help="import what installed packages register (entry points of the group genkit.plugins)",
        )
        command.options(one)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status."""
    with standard():
        return status(argv)


def status(argv: Sequence[str] | None) -> int:
    """That of a command line, which it runs; says what went wrong."""
    try:
        code = command_line(argv)
        sys.stdout.flush()
        return code
    except GenkitError as error:
        return fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone
        let_go(sys.stdout)
        return 0
    except OSError as error:
        gone = error.errno == errno.EIO and error.filename is None and hung_up(sys.stdout)
        let_go(sys.stdout)
        if gone:
            return 0
        where = f" {error.filename}" if error.filename else ""
        return fail(f"cannot read or write{where}: {error.strerror or error}")
    except (MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        if not too_large(error):
            raise
        reason = (str(error) or "MemoryError").splitlines()[0]
        return fail(f"a size is larger than this machine has memory for: {reason}")
    except (KeyboardInterrupt, Terminated) as stop:
        word, code = ("stopped", 130) if isinstance(stop, KeyboardInterrupt) else ("terminated", 143)
        say("; ".join([f"genkit: {word}", *map(str, stop.args)]), sys.stderr)
        return code


def command_line(argv: Sequence[str] | None) -> int:
    root = parser()
    try:
        arguments, rest = root.parse_known_args(argv)
        if rest:  # overrides may also stand behind options, which argparse alone does not allow
            if not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest):
                root.error(f"unrecognized arguments: {' '.join(rest)}")
            arguments.overrides += rest
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    if arguments.version:
        from genkit import __version__

        say(f"genkit {__version__}")
        return 0
    if arguments.command is None:
        root.print_help()
        return 0
    load_plugins(arguments)
    return COMMANDS[arguments.command].run(arguments) or 0


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a text, to stdout by default, in which a name of a folder may stand."""
    print(printable(text), file=stream, flush=stream is not None)


def fail(message: str) -> int:
    which = ""
    with suppress(GenkitError):  # perhaps just this is what is wrong
        which = f" in process {rank()}" if rank() else ""
    say(f"genkit: error{which}: {message}", sys.stderr)
    return 2


def train_options(train: Parser) -> None:
    train.add_argument("recipe", help="a YAML file")
    train.add_argument("overrides", **OVERRIDES)
    train.add_argument(
        "--out", type=path, metavar="FOLDER", help="the run folder (default: runs/<name of the recipe>)"
    )


def run_train(arguments: argparse.Namespace) -> None:
    from genkit.recipe import Recipe, check_plugins, read_yaml, train

    config = read_yaml(arguments.recipe, arguments.overrides)
    check_plugins(config, (), arguments.recipe)
    if "arms" in config:
        raise GenkitError(f"{arguments.recipe} has arms: it is for `genkit compare`")
    recipe = Recipe.resolve(config, arguments.recipe)
    folder = arguments.out or Path("runs") / (recipe.config["name"] or Path(arguments.recipe).stem)
    with listening() as listener:
        run = train(
            recipe, folder, report=lambda step, steps, loss: listener.training(folder.name, step, steps, loss)
        )
    if rank():
        return
    environment = run.environment
    hint = f"; try: genkit sample {folder}" if run.objective.generates else ""
    say(f"{folder}: {environment['steps']} steps in {environment['seconds']:.0f} s{hint}")


def run_options(one: Parser) -> None:
    one.add_argument("run", help="a run folder")
    one.add_argument("--checkpoint", **CHECKPOINT)
    one.add_argument("--device", **PLACE)


def loaded(arguments: argparse.Namespace) -> Run:
    """The run of `run_options`."""
    from genkit.recipe import load

    return load(arguments.run, checkpoint=arguments.checkpoint, device=device(arguments.device))


def sample_options(sample: Parser) -> None:
    run_options(sample)
    sample.add_argument("-n", type=int, default=64, help="number of samples (default: 64)")
    sample.add_argument(
        "--solver",
        help="of flows, such as heun or '{name: heun, grid: edm}'; see `genkit list solvers` and `genkit list grids`",
    )
    sample.add_argument("--unmasker", help="of discrete models; see `genkit list unmaskers`")
    sample.add_argument(
        "--inverter",
        help="of normalizing flows, such as jacobi or '{name: jacobi, tolerance: 1e-4}'; see `genkit list inverters`",
    )
    sample.add_argument("--steps", type=int, help="steps of the solver or unmasker")
    sample.add_argument("--temperature", type=float, help="of the unmasker; 0 takes the most probable")
    sample.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the most probable symbols of share P"
    )
    sample.add_argument(
        "--prompt", type=str, help="what is given of each sample, in the words of the data set"
    )
    sample.add_argument("--task", help="of data with several kinds of rows")
    sample.add_argument(
        "--resolution", type=int, metavar="SIDE", help="of images, where the model can change it (ambient)"
    )
    sample.add_argument(
        "--points", type=int, metavar="N", help="of clouds, where the model can change it (ambient)"
    )
    sample.add_argument(
        "--guidance",
        metavar="SCALE",
        help="a scale, 1 is off; or such as '{name: interval, scale: 2, start: 0.3}'; see `genkit list guidances`",
    )
    sample.add_argument(
        "--class",
        type=int,
        dest="label",
        metavar="CLASS",
        help="class (default: all in turn; of particles none)",
    )
    sample.add_argument(
        "--condition",
        type=float,
        nargs="+",
        metavar="VALUE",
        help="the values, of data with real-valued conditions (default: those of the test rows in turn)",
    )
    log_prob_options(sample.add_argument_group("log-probabilities of the samples, where they come with them"))
    particle_options(sample.add_argument_group("particles, of energies"))
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    sample.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="a picture .png, text .txt, sound .wav, or arrays .npy, .safetensors (default: samples, by the data)",
    )


def log_prob_options(likelihood: argparse._ArgumentGroup) -> None:
    likelihood.add_argument(
        "--log-prob",
        action="store_true",
        default=None,
        help="tell their mean and range, of the samples as encoded; .safetensors holds all, in nats",
    )
    likelihood.add_argument(
        "--divergence", help="of flows of pairs: auto (exact up to 16 dimensions), exact or hutchinson"
    )
    likelihood.add_argument("--probes", type=int, metavar="N", help="of hutchinson's estimate (default: 2)")


def particle_options(particles: argparse._ArgumentGroup) -> None:
    particles.add_argument(
        "--compose", metavar="EXPRESSION", help='classes as in "3 AND 8", "3 AND NOT 8^0.5", "0.3*3 OR 0.7*8"'
    )
    particles.add_argument("--beta", type=float, help="power of the density: above 1 for less variety")
    particles.add_argument("--particles", type=int, metavar="N", help="how many (default: 256)")
    particles.add_argument(
        "--divide-prior", action="store_true", help="compose p(x|y)/p(x), and p(x) once, in place of p(x|y)"
    )
    particles.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="TARGET",
        help="a further target, such as '{name: reward, reward: brightness, strength: 20}' (`genkit list targets`)",
    )
    particles.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="another run that the expression names",
    )
    particles.add_argument("--resampler", help="see `genkit list resamplers`")
    particles.add_argument("--move", help="see `genkit list moves`")


@together()
def run_sample(arguments: argparse.Namespace) -> None:
    from genkit.compare.pictures import SUFFIXES, save_samples, suffix, writable

    writable(arguments.out or Path("samples.png"), SUFFIXES)
    run = loaded(arguments)
    asked = [
        word for word in PARTICLES if getattr(arguments, word.replace("-", "_")) not in (None, False, [])
    ]
    if arguments.label is not None and run.spec.condition is not None:
        raise GenkitError(f"'{run.spec.name}' has real-valued conditions, not classes: give --condition")
    if arguments.condition is not None and run.spec.condition is None:
        hint = ", but classes: give --class" if run.spec.classes else ""
        raise GenkitError(f"'{run.spec.name}' has no real-valued conditions{hint}")
    arrays: dict[str, Tensor] = {}
    if asked:
        x, how = sample_particles(run, arguments, asked)
    else:
        sample = run.sample(
            arguments.n,
            arguments.label if arguments.condition is None else arguments.condition,
            **{kind: entry(getattr(arguments, kind), kind) for kind in ENTRIES},
            steps=arguments.steps,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            prompt=arguments.prompt,
            task=arguments.task,
            resolution=arguments.resolution,
            points=arguments.points,
            return_log_prob=bool(arguments.log_prob),
            divergence=arguments.divergence,
            probes=arguments.probes,
            seed=arguments.seed,
        )
        x, how = sample.x, f"{sample.nfe} network calls in sequence"
        if sample.log_prob is not None:
            arrays, words = log_probabilities(sample.log_prob)
            how += f", {words}"
    if rank():
        return
    shown = run.show(x.cpu())
    out = arguments.out or Path("samples").with_suffix(suffix(shown, run.spec))
    save_samples(x.cpu(), shown, run.spec, out, **arrays)
    say(f"{out}: {arguments.n} samples of {run.name}, {how}")


def log_probabilities(found: LogProb) -> tuple[dict[str, Tensor], str]:
    """As arrays, and in words."""
    value = found.value.cpu()
    arrays = {"log_prob": value}
    words = f"log-probability of the samples as encoded {value.mean():.4g} nats on average, "
    words += f"from {value.min():.4g} to {value.max():.4g}"
    if found.stderr is not None:
        arrays["log_prob_stderr"] = found.stderr.cpu()
        words += f", each with a standard error of about {found.stderr.median():.2g}"
    return arrays, words


ENTRIES = ("solver", "unmasker", "inverter", "guidance")


def entry(text: str | None, key: str) -> Any:
    """A name, a number, or a mapping with `name` and options, as a recipe has it. Raises GenkitError for a null."""
    from genkit.recipe import override

    try:
        return None if text is None else float(text)
    except ValueError:
        found = override({}, [f"{key}={text}"])[key]
    if found is None:
        raise GenkitError(f"--{key} {text} names none: leave it out for the default")
    return found


PARTICLES = ("compose", "beta", "particles", "divide-prior", "control", "model", "resampler", "move")
OTHERS = (
    *("solver", "unmasker", "inverter", "temperature", "top-p", "prompt", "task", "guidance", "condition"),
    *("log-prob", "divergence", "probes"),
    *("resolution", "points"),
)


def sample_particles(run: Run, arguments: argparse.Namespace, asked: Sequence[str]) -> tuple[Tensor, str]:
    """Samples drawn from weighted particles, and what is to be said of them."""
    from genkit.particles import FeynmanKac
    from genkit.randomness import keyed_generator
    from genkit.recipe import load

    for word in OTHERS:
        if getattr(arguments, word.replace("-", "_")) is not None:
            raise GenkitError(
                f"--{word} is not for particles, which --{asked[0]} asks for: leave one of them out"
            )
    models = {}
    for text in arguments.model:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise GenkitError(f"--model is NAME=RUN, such as --model other=runs/other, not '{text}'")
        models[name] = load(folder, device=device(arguments.device))
    given = {key: getattr(arguments, key) for key in ("particles", "steps", "resampler", "move")}
    sampler = FeynmanKac(**{key: value for key, value in given.items() if value is not None})
    if arguments.n > sampler.particles:
        raise GenkitError(
            f"-n {arguments.n} samples cannot be drawn from {sampler.particles} particles: raise --particles"
        )
    target = run.target(
        arguments.compose,
        label=arguments.label,
        beta=1.0 if arguments.beta is None else arguments.beta,
        divide_prior=arguments.divide_prior,
        controls=[entry(text, "control") for text in arguments.control],
        models=models,
    )
    generator = keyed_generator(arguments.seed, "particles", device=run.objective.device)
    with listening() as listener:
        found = sampler.sample(
            target,
            generator=generator,
            progress=lambda step, steps, ess, resamplings: listener.particles(
                run.name, step, steps, ess, resamplings
            ),
        )
    effective, least = f"{found.ess[-1]:.0f}", f"{min(found.ess):.0f}"
    how = (
        f"from {sampler.particles} particles, of which {effective} effective at the end ({least} at least), "
        f"{found.resamplings} resamplings, {found.evaluations} network calls in sequence"
    )
    if found.acceptance is not None:
        how += f", {found.acceptance:.0%} of moves accepted"
    return target.decode(found.draw(arguments.n, generator=generator)), how


def evaluate_options(evaluate: Parser) -> None:
    run_options(evaluate)
    options = {**OVERRIDES, "help": "options, such as samples=1000 steps=[1,2,4]"}
    evaluate.add_argument("overrides", **options)


@together()
def run_evaluate(arguments: argparse.Namespace) -> None:
    from genkit.compare.evaluate import EvaluationOptions, check_given
    from genkit.compare.report import print_evaluation
    from genkit.compare.runner import evaluated
    from genkit.recipe import override
    from genkit.registry import resolve_options

    run = loaded(arguments)
    given = override({}, arguments.overrides)
    options = EvaluationOptions(**resolve_options(EvaluationOptions, given, "evaluate"))
    with within("evaluate"):
        check_given(run, options, given)
    unkept: list[GenkitError] = []
    with listening() as listener:
        result = evaluated(run, options, listener, unkept=unkept.append)
    if rank() == 0:
        print_evaluation(run.name, result)
    for error in unkept:
        say(f"genkit: the result is not kept: {error}", sys.stderr)


def info_options(info: Parser) -> None:
    info.add_argument("run", type=path, help="a run folder, or the folder of a comparison")


def run_info(arguments: argparse.Namespace) -> None:
    from genkit.compare.info import print_info

    print_info(arguments.run)


def compare_options(compare: Parser) -> None:
    compare.add_argument("recipe", help="a YAML file with `arms`")
    comparison_options(compare)


@together()
def run_compare(arguments: argparse.Namespace) -> None:
    from genkit.compare.report import print_table
    from genkit.compare.runner import Comparison

    report, page = compared(Comparison.load(arguments.recipe, arguments.overrides), arguments)
    if rank() == 0:
        print_table(report, page)


def reproduce_options(reproduce: Parser) -> None:
    reproduce.add_argument(
        "paper", help="a folder under recipes/papers, or a YAML file with `paper` and `expected`"
    )
    comparison_options(reproduce)


@together()
def run_reproduce(arguments: argparse.Namespace) -> None:
    from genkit.compare.paper import find, load, print_verdicts

    comparison, _ = load(find(arguments.paper), arguments.overrides)
    report, page = compared(comparison, arguments)
    if rank() == 0:
        print_verdicts(report)
        say(f"report: {page}")


def comparison_options(one: Parser) -> None:
    one.add_argument("overrides", **OVERRIDES)
    one.add_argument("--out", type=path, metavar="FOLDER", help="(default: runs/<name of the recipe>)")
    one.add_argument("--device", **{**PLACE, "help": f"for the evaluation: {PLACE['help']}"})
    one.add_argument("--seeds", type=int, default=1, help="runs of each arm (default: 1)")


def compared(comparison: Comparison, arguments: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The report of a comparison, with verdicts where its recipe expects something, and its page."""
    from genkit.compare.paper import expectations, verdicts
    from genkit.compare.pictures import writable
    from genkit.compare.report import write_report
    from genkit.compare.runner import compare

    out = arguments.out or Path("runs") / comparison.name
    if arguments.seeds < 1:
        raise GenkitError(f"--seeds must be at least 1, not {arguments.seeds}")
    expectations(comparison)  # a wrong one must show before training, not after
    writable(out / "report.html")
    with locked(out), listening() as listener:  # what it reports must be its own, to the last picture
        where = device(arguments.device)
        report = compare(comparison, out, seeds=arguments.seeds, listener=listener, device=where)
        report |= verdicts(comparison, report)
        listener.message("report", "drawing")
        return report, out / "report.html" if rank() else write_report(report, out)


def benchmark_options(benchmark: Parser) -> None:
    benchmark.add_argument("what", choices=["samplers"], help="what is compared")
    run_options(benchmark)
    options = {**OVERRIDES, "help": "options, such as samples=500 solvers=[heun,dpmpp] grids=[uniform,edm]"}
    benchmark.add_argument("overrides", **options)
    benchmark.add_argument(
        "--out",
        type=path,
        metavar="FOLDER",
        help="(default: runs/samplers/<name of the run>, and _<checkpoint>)",
    )


def run_benchmark(arguments: argparse.Namespace) -> None:
    from genkit.compare.pictures import writable
    from genkit.compare.samplers import BenchmarkOptions, benchmark, write
    from genkit.recipe import override
    from genkit.registry import resolve_options

    alone("benchmark")
    of = "" if arguments.checkpoint is None else f"_{Path(arguments.checkpoint).stem}"
    out = arguments.out or Path("runs/samplers") / f"{Path(arguments.run).name}{of}"
    writable(out / "table.md")
    with locked(out):
        run = loaded(arguments)
        given = override({}, arguments.overrides)
        options = BenchmarkOptions(**resolve_options(BenchmarkOptions, given, "benchmark"))
        with listening() as listener:
            report = benchmark(run, options, progress=lambda text: listener.message(run.name, text))
        table = write(report, out)
    say(table.read_text())
    say(f"table and figures: {out}")


def fit_grid_options(grid: Parser) -> None:
    run_options(grid)
    grid.add_argument(
        "--solver", required=True, help="of a fixed number of steps and without noise, such as heun"
    )
    grid.add_argument("--steps", type=int, required=True, help="of the grid")
    grid.add_argument("--samples", type=int, metavar="N", help="fitted to, and held out (default: 256)")
    grid.add_argument("--reference", metavar="SOLVER", help="what it is fitted to (default: many steps)")
    grid.add_argument("--guidance", help="a scale or a guidance with options; 1 is off")
    grid.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    grid.add_argument(
        "--out", type=path, metavar="FILE", default=Path("grid.json"), help="(default: grid.json)"
    )


def run_fit_grid(arguments: argparse.Namespace) -> None:
    from genkit.compare.pictures import writable
    from genkit.compare.samplers import fit_grid
    from genkit.files import write_json

    alone("fit-grid")
    writable(arguments.out)
    solver = entry(arguments.solver, "solver")
    found = fit_grid(
        loaded(arguments),
        solver,
        arguments.steps,
        samples=arguments.samples,
        reference=entry(arguments.reference, "reference"),
        guidance=entry(arguments.guidance, "guidance"),
        seed=arguments.seed,
    )
    write_json(arguments.out, found)
    errors = {name: error["held_out"] for name, error in found["errors"].items()}
    best = found["best_other"]
    say(
        f"{arguments.out}: {arguments.steps} steps end {errors['fitted']:.4g} from {found['reference']} on noise held "
        f"out; on {best}, the best of the other grids, {errors[best]:.4g}"
    )
    if errors["fitted"] > errors[best]:
        say(f"it is fitted to its own noise: take more --samples, or the grid {best}")
    options = {"name": solver} if isinstance(solver, str) else solver
    chosen = json.dumps(options | {"grid": {"name": "fitted", "file": str(arguments.out)}})
    which = f" --checkpoint {arguments.checkpoint}" if arguments.checkpoint else ""
    say(f"try: genkit sample {arguments.run}{which} --steps {arguments.steps} --solver '{chosen}'")


def list_options(list_: Parser) -> None:
    list_.add_argument("kind", nargs="?", metavar="KIND", help=", ".join(REGISTRIES))
    list_.add_argument("name", nargs="?", metavar="NAME", help="an entry: its options and what it does")


def run_list(arguments: argparse.Namespace) -> None:
    singular = f"{arguments.kind}s" in REGISTRIES  # as check and new have it
    given = f"{arguments.kind}s" if singular else arguments.kind
    if given is not None and given not in REGISTRIES:
        raise choose(given, REGISTRIES, "kind of entry")
    for kind in [given] if given else REGISTRIES:
        package, name = REGISTRIES[kind]
        registry = getattr(importlib.import_module(package), name)
        if arguments.name is not None:
            say(registry.describe(arguments.name))
            return
        if arguments.kind is None:
            say(f"{kind}:")
        width = max(len(entry) for entry in registry.names())
        for entry in registry.names():
            say(f"  {entry:<{width}}  {registry.summary(entry)}")


def check_options(check: Parser) -> None:
    check.add_argument("kind", metavar="KIND", help="coupling, solver, path, objective, ...")
    check.add_argument("name", metavar="NAME", help="an entry, such as one that --plugin FILE registers")
    check.add_argument("overrides", **{**OVERRIDES, "help": "its options, such as steps=500"})


def run_check(arguments: argparse.Namespace) -> int:
    from genkit.recipe import override
    from genkit.testing import examine

    report = examine(arguments.kind, arguments.name, **override({}, arguments.overrides))
    print(report.text(color=sys.stdout.isatty()))
    return 0 if report.holds else 1


def new_options(new: Parser) -> None:
    new.add_argument("kind", metavar="KIND", help="coupling, solver, path, metric, ...")
    new.add_argument("name", metavar="NAME", help="what recipes shall call it")


def run_new(arguments: argparse.Namespace) -> None:
    from genkit.testing.starters import write_starter

    path = write_starter(arguments.kind, arguments.name, Path.cwd())
    say(f"{path.name}: try: genkit check {arguments.kind} {arguments.name} --plugin {path.name}")


COMMANDS = {
    "train": Command("Train a recipe in a run folder, or resume it there.", train_options, run_train),
    "sample": Command("Sample a trained run.", sample_options, run_sample),
    "evaluate": Command("Measure a trained run, and print the figures.", evaluate_options, run_evaluate),
    "info": Command("What is known of a run, or of the runs of a comparison.", info_options, run_info),
    "compare": Command(
        "Train the arms of a comparison, evaluate them alike, and write a report.",
        compare_options,
        run_compare,
    ),
    "reproduce": Command(
        "Run a paper's recipe, and hold what it expects against what is measured.",
        reproduce_options,
        run_reproduce,
    ),
    "benchmark": Command(
        "Solvers and time grids side by side on a trained flow: a table and figures.",
        benchmark_options,
        run_benchmark,
    ),
    "fit-grid": Command(
        "Fit a time grid of few steps to a trained flow, for the grid `fitted`.",
        fit_grid_options,
        run_fit_grid,
    ),
    "list": Command("What the registries hold, a line each.", list_options, run_list),
    "check": Command(
        "Hold an entry against the laws of its kind; status 1 when one is broken.", check_options, run_check
    ),
    "new": Command(
        "Write NAME.py, a start for an entry of one's own that passes its check.", new_options, run_new
    ),
}


def load_plugins(arguments: argparse.Namespace) -> None:
    """Runs the plug-ins that were given, and those that are installed where they are trusted."""
    from genkit.registry import load_installed, load_plugin

    for file in arguments.plugin:
        load_plugin(file)
    if arguments.trust_plugins:
        load_installed()


def device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise GenkitError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


@contextmanager
def listening() -> Iterator[Bars]:
    """A bar for each run on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=rank() > 0 or not console.is_terminal) as progress:
        yield Bars(progress, plain=rank() == 0 and not console.is_terminal)


class Bars:
    """The listener behind `listening`."""

    def __init__(self, progress: Any, plain: bool) -> None:
        self.progress, self.plain = progress, plain
        self.tasks: dict[str, Any] = {}
        self.told: dict[str, int] = {}

    def training(self, arm: str, step: int, steps: int, loss: float) -> None:
        self._bar(arm, total=steps, completed=step, note=f"loss {loss:.4f}")
        self._tell(arm, step, steps, f"loss {loss:.4f}")

    def particles(self, run: str, step: int, steps: int, ess: float, resamplings: int) -> None:
        note = f"{ess:.0f} effective, {resamplings} resamplings"
        self._bar(run, total=steps, completed=step, note=note)
        self._tell(run, step, steps, note)

    def message(self, arm: str, text: str) -> None:
        self._bar(arm, note=printable(text))
        if self.plain:
            say(f"{arm}: {text}", sys.stderr)

    def _tell(self, arm: str, step: int, steps: int, note: str) -> None:
        """A line each tenth of the way, where there are no bars."""
        tenth = 10 * step // steps
        if tenth < self.told.get(arm, 0):  # another run of the same name: the parts of a mixture come first
            self.told[arm] = 0
        if self.plain and tenth > self.told.get(arm, 0):
            self.told[arm] = tenth
            say(f"{arm}: step {step}/{steps}, {note}", sys.stderr)

    def _bar(self, arm: str, **fields: Any) -> None:
        if arm not in self.tasks:
            self.tasks[arm] = self.progress.add_task(printable(arm), total=fields.get("total"), note="")
        self.progress.update(self.tasks[arm], **fields)


if __name__ == "__main__":
    sys.exit(main())
