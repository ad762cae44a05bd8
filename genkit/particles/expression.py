"""Compositions in words: "3 AND 8", "3 AND NOT 8^0.5", "0.3*3 OR 0.7*8".

    either = part ("OR" part)*              a mixture; a part may have a weight: 0.3*3
    part   = [number "*"] all
    all    = factor ("AND" factor)*         a product
    factor = ["NOT"] atom ["^" number]      a power; NOT: a negative one
    atom   = "(" either ")" | [model ":"] (class | "any")

A class is its number or its name, in quotes where it is more than letters, digits, - and _. `any` is the unconditional
model. A name before a colon says of which model, where there are several. Weights go with OR, powers with the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from genkit.errors import GenkitError, choose
from genkit.particles.base import TARGETS, Model, Target
from genkit.particles.compositions import Mixture, Product, Temperature

TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?(?![\w.])) | (?P<word>[^\W\d][\w-]*)
    | "(?P<double>[^"]*)" | '(?P<single>[^']*)' | (?P<sign>[()*^:]))""",
    re.VERBOSE,
)
RESERVED = ("AND", "OR", "NOT")


class Token(NamedTuple):
    """kind: number, word, quoted, sign or end; place: of its first character, from 1."""

    kind: str
    text: str
    place: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"'{self.text}'"


def parse(
    text: str, model: Any, *, models: Mapping[str, Any] | None = None, divide_prior: bool = False
) -> Target:
    """The target that an expression means.

    model: the objective that classes without a name are of. models: others, by the names they have in `text`.
    divide_prior: products and powers are of p(x | y) / p(x), times p(x) once (see `Product`).
    Raises GenkitError for an expression that does not parse, with the place; for a class or a model that does not
    exist, with the nearest; and for what cannot be normalized.
    """
    target = Parser(text, model, models or {}, divide_prior).parse()
    target.check()
    return target


def build_target(
    model: Any,
    compose: str | None = None,
    *,
    label: int | None = None,
    beta: float = 1.0,
    divide_prior: bool = False,
    controls: Sequence[Mapping[str, Any]] = (),
    models: Mapping[str, Any] | None = None,
) -> Target:
    """What is asked for in words, to the power beta, held to further targets.

    Where nothing is composed it is of the class `label`, or of all data. See `parse` for the rest. Raises GenkitError
    also for what would have no effect.
    """
    if compose is None:
        for name, given in (("divide_prior", divide_prior), ("models", models)):
            if given:
                raise GenkitError(f"{name} has no effect without a composition, such as '3 AND 8'")
        target: Target = Model(model, label)
    elif label is not None:
        raise GenkitError(
            f"a composition names its classes: leave out the class {label}, or write it in there"
        )
    else:
        target = parse(compose, model, models=models, divide_prior=divide_prior)
    if beta != 1:
        target = TARGETS.build("temperature", target, beta=beta)
    for control in controls:
        name = TARGETS.resolve(control)["name"]
        if TARGETS.get(name).several:
            raise GenkitError(
                f"the target '{name}' is made of several: write it as a composition, such as '3 AND 8'"
            )
        target = TARGETS.build(control, target)
    return target


class Parser:
    """Recursive descent, a method for each rule of the grammar."""

    def __init__(self, text: str, model: Any, models: Mapping[str, Any], divide_prior: bool) -> None:
        self.text, self.model, self.models = text, model, models
        self.prior = Model(model) if divide_prior else None
        self.tokens, self.position = tokens(text), 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def take(self, *texts: str) -> Token | None:
        """The next token, passed over, if it is one of these words or signs."""
        token = self.token
        if token.kind not in ("word", "sign") or token.text not in texts:
            return None
        self.position += 1
        return token

    def parse(self) -> Target:
        target = self.either()
        if self.token.kind != "end":
            raise self.error("AND, OR, ^ or the end")
        return target

    def either(self) -> Target:
        start = self.token
        parts = [self.part()]
        while self.take("OR"):
            parts.append(self.part())
        targets, weights = zip(*parts, strict=True)
        if len(parts) > 1:
            return Mixture(targets, [1.0 if weight is None else weight for weight in weights])
        if weights[0] is not None:
            raise GenkitError(
                f"{self.where(start)}: weights go with OR; of one part alone a power may be meant: ^{start.text}"
            )
        return targets[0]

    def part(self) -> tuple[Target, float | None]:
        weight = None
        if self.token.kind == "number" and self.tokens[self.position + 1].text == "*":
            start = self.token
            weight = self.number()
            self.position += 1
            if weight == 0:
                raise GenkitError(f"{self.where(start)}: a weight must be positive")
        return self.all(), weight

    def all(self) -> Target:
        start = self.token
        factors = [self.factor()]
        while self.take("AND"):
            factors.append(self.factor())
        targets, powers = zip(*factors, strict=True)
        if all(power < 0 for power in powers):
            raise GenkitError(
                f"{self.where(start)}: NOT takes away from something, alone it is no density: 'any AND NOT ...'"
            )
        if len(factors) == 1 and powers[0] == 1:
            return targets[0]
        if len(factors) == 1 and self.prior is None:
            return Temperature(targets[0], powers[0])
        return Product(targets, powers, self.prior)

    def factor(self) -> tuple[Target, float]:
        sign = -1.0 if self.take("NOT") else 1.0
        atom, power = self.atom(), 1.0
        if self.take("^"):
            start = self.token
            power = self.number()
            if power == 0:
                raise GenkitError(
                    f"{self.where(start)}: a power must be positive (for a negative one write NOT)"
                )
        return atom, sign * power

    def number(self) -> float:
        if self.token.kind != "number":
            raise self.error("a positive number")
        self.position += 1
        return float(self.tokens[self.position - 1].text)

    def atom(self) -> Target:
        if self.take("("):
            inside = self.either()
            if not self.take(")"):
                raise self.error("AND, OR, ^ or )")
            return inside
        if self.token.kind == "number" and self.tokens[self.position + 1].text == "*":
            raise GenkitError(
                f"{self.where(self.token)}: weights go with OR; in a product write a power: ^{self.token.text}"
            )
        token = self.name("a class, 'any', NOT or (")
        model = self.model
        if self.take(":"):
            if token.text not in self.models:
                raise self.located(token, choose(token.text, self.models, "model"))
            model, token = self.models[token.text], self.name("a class or 'any'")
        try:
            return Model(model, number_of(token, model))
        except GenkitError as error:
            raise self.located(token, error) from None

    def name(self, expected: str) -> Token:
        """A number, a word or a quoted name, passed over."""
        token = self.token
        if token.kind in ("sign", "end") or (token.kind == "word" and token.text in RESERVED):
            raise self.error(expected)
        self.position += 1
        return token

    def where(self, token: Token) -> str:
        return f"'{self.text}', at character {token.place}"

    def located(self, token: Token, error: GenkitError) -> GenkitError:
        return GenkitError(f"{self.where(token)}: {error}")

    def error(self, expected: str) -> GenkitError:
        return GenkitError(f"{self.where(self.token)}: expected {expected}, not {self.token}")


def tokens(text: str) -> list[Token]:
    """All tokens, and one that stands for the end."""
    found, place = [], 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        if match is None:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            raise GenkitError(
                f"'{text}', at character {start + 1}: '{text[start]}' begins nothing that is known here: classes, any, "
                "AND, OR, NOT, ( ), ^ and * with numbers; put names with other characters in quotes"
            )
        kind = match.lastgroup or ""
        quoted = kind in ("double", "single")
        found.append(Token("quoted" if quoted else kind, match[kind], match.start(kind) + 1 - quoted))
        place = match.end()
    return [*found, Token("end", "", len(text) + 1)]


def number_of(token: Token, model: Any) -> int | None:
    """The class that a token names; None for `any`. Raises GenkitError for one that there is not."""
    names = list(model.spec.class_names)
    if token.kind == "word" and token.text == "any":
        return None
    if token.text in names:  # also one that looks like a number
        return names.index(token.text)
    if token.kind == "number" and token.text.isdigit():
        return int(token.text)
    raise choose(token.text, [*(names or map(str, range(model.classes or 0))), "any"], "class")
