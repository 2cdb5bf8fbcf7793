"""Which of a loss's parameters is which: by their names, as the field has them, else by their places.

A name is split into words (``old_per_token_logps``: old, per, token, logps; ``newlogprob``: new, logprob), and they
decide: a log-probability, of the old policy or of the new one, an advantage, a mask, or a half-width of the clip.
Needs the standard library alone.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlloss.errors import LossError

CONTRACT = "(logp, old_logp, advantages, *, clip_coef)"
SEQUENCE_CONTRACT = "(logp, old_logp, advantages, mask, *, clip_coef)"
DATA = ("logp", "old_logp", "advantages")  # the contract's order, which decides where names do not


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOGP = _words("logp logps logprob logprobs logpi logpis lp lps loglik loglikelihood loglikelihoods")
AFTER_LOG = _words("p ps prob probs pi pis probability probabilities lik likelihood likelihoods policy")
NEW = _words("new newer curr current cur now updated")
OLD = _words(
    "old older prev previous behavior behaviour behavioral behavioural behav behave rollout rollouts sampling sampler "
    "generation generator generated gen inference infer mu vllm sglang proximal prox stored buffer original orig "
    "collected collector last past stale fixed detached cached saved recorded k 0"
)
OLD_ALONE = _words("old older prev previous behavior behaviour mu")  # old, too, without a word for a logp beside it
NEUTRAL = _words(
    "b mb batch minibatch per token tokens tok action actions act ac a t policy pi pis actor model learner train "
    "trainer training trained target theta response responses completion completions seq sequence all selected chosen "
    "taken hat est estimate estimates targ targets group normalized normalised norm level flat"
)
STORED = _words("b mb batch minibatch target")  # of two plain names for a logp, one with these is the old policy's
ADVANTAGES = _words("advantage advantages adv advs gae gaes")
RETURNS = _words("return returns reward rewards score scores")  # if nothing is called an advantage
MASK = _words("mask masks msk")
NO_TOKEN_MASK = _words("pad padding padded clip clipped sample samples invalid done dones value values")
CLIP = _words("clip clipping eps epsilon ε ϵ")
BESIDE_CLIP = _words(
    "coef coeff coefficient range ratio ratios param parameter threshold thresh ppo policy pi pg actor surr surrogate "
    "low lower lo down left high higher hi upper up right"
)
FOREIGN = _words(  # no role of ours, whatever its place
    "ref refs reference base baseline sft init initial teacher prior expert neg negative neglogp nlp nll kl kls kld "
    "diff diffs difference delta ratio ratios logratio logratios value values vf vpred vpreds critic entropy entropies "
    "ent logit logits weight weights grad std mean coef coeff prob probs probability probabilities"
)
ANOTHER_THING = FOREIGN | _words(  # unless another word makes it one of ours
    "action actions act obs observation observations state states input inputs ids id labels length lengths beta "
    "config cfg args self cls model batch minibatch rollout rollouts buffer learner trainer"
)
_GLUED = LOGP | NEW | OLD | NEUTRAL | ADVANTAGES | MASK | CLIP | BESIDE_CLIP | FOREIGN
_STEMS = re.compile("|".join(sorted((w for w in _GLUED if len(w) > 2 or w == "ac"), key=len, reverse=True)))
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")

EMPTY = inspect.Parameter.empty
BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
TINY = 2e-4  # an eps below is no clip's but a guard against 0 (GSPO's are 3e-4)
WIDE = 0.5  # a default above is a bound of the ratio or a cap, not a half-width


@dataclass(frozen=True)
class Kept:
    """The default of a positional-only parameter that no role is for, and that others follow."""

    value: Any


@dataclass(frozen=True)
class Binding:
    """How a function is handed the roles: by position, then by keyword."""

    positional: tuple[str | Kept, ...] = (*DATA, "mask")
    keywords: tuple[tuple[str, str], ...] = (("clip_coef", "clip_coef"),)  # (parameter, role)
    roles: tuple[tuple[str, str], ...] = ()  # (parameter, role) of all that have a name, in the function's order
    guessed: frozenset[str] = frozenset(DATA)  # the roles that no name decided

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The call's arguments, from a value for each role; a role without a value is left out."""
        taken = [x for x in self.positional if isinstance(x, Kept) or x in values]
        given = [x.value if isinstance(x, Kept) else values[x] for x in taken]
        return given, {parameter: values[role] for parameter, role in self.keywords if role in values}

    def argument(self, role: str) -> str:
        """In words: the parameter of a role, as in "2nd argument, `y`"."""
        named = next((parameter for parameter, its in self.roles if its == role), None)
        ordinals = ("1st", "2nd", "3rd", "4th")
        place = self.positional.index(role) if role in self.positional else len(ordinals)
        number = f"{ordinals[place]} argument" if place < len(ordinals) else "argument"
        return f"{number}, `{named}`" if named else number

    @property
    def takes_mask(self) -> bool:
        return any(role == "mask" for _, role in self.roles)


BY_POSITION = Binding()
"""The contract itself; also for functions written in C, of which nothing is known: the call itself will tell."""


def words(name: str) -> tuple[str, ...]:
    """A name's words: split at underscores, capitals and digits; ``log`` and what follows it are one, ``logp``."""
    parts: list[str] = []
    for word in _WORDS.findall(name):
        stems = _STEMS.findall(word.lower())
        parts += stems if word.lower() not in _GLUED and "".join(stems) == word.lower() else [word.lower()]
    joined: list[str] = []
    for word in parts:
        if joined and joined[-1] == "log" and (word in AFTER_LOG or word in OLD):
            joined[-1:] = ["logp", word] if word in OLD else ["logp"]  # log_mu is the old policy's
        else:
            joined.append(word)
    return tuple(joined)


def meaning(name: str) -> str:
    """What a name alone says: a role; "new" for a logp that says so; "returns"; "foreign"; "" for nothing."""
    said = set(words(name))
    if said <= {"a", "hat", "t"} and (name.startswith("A") or "hat" in said):
        return "advantages"
    if said & MASK or said == {"m"}:
        return "foreign" if said & NO_TOKEN_MASK else "mask"
    if said & CLIP and said <= CLIP | BESIDE_CLIP:
        return "clip_coef"
    if said & FOREIGN:
        return "foreign"
    if said & LOGP or (said <= NEW | OLD_ALONE | NEUTRAL and said & (NEW | OLD_ALONE)):
        return "new" if said & NEW else "old_logp" if said & OLD else "logp"
    if said & ADVANTAGES:
        return "advantages"
    if said & RETURNS:
        return "returns"
    return "foreign" if said & ANOTHER_THING else ""


def is_bare(name: str) -> bool:
    """Whether a name says what it is, nothing that we do not know, and not that it was stored."""
    said = set(words(name))
    return said <= LOGP | NEW | OLD | ADVANTAGES | RETURNS | NEUTRAL - STORED


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature; of a torch module that of its ``forward``; None for a function written in C without one."""
    if hasattr(schema := getattr(function, "schema", None), "arguments"):  # of torch.jit.script
        return _of_schema(schema)
    module = getattr(function, "_orig_mod", function)  # torch.compile's module hides the names
    forward = getattr(module, "forward", None) if hasattr(module, "register_forward_hook") else None
    try:
        return inspect.signature(forward if callable(forward) else function)
    except (TypeError, ValueError):
        return None


def _of_schema(schema: Any) -> inspect.Signature:
    """The signature that TorchScript keeps in its own form."""
    return inspect.Signature([
        inspect.Parameter(
            argument.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=argument.default_value if argument.has_default_value() else EMPTY,
        )
        for argument in schema.arguments
    ])  # fmt: skip


def bind(function: Callable[..., Any], name: str) -> Binding:
    """Find each role's parameter. Raises: LossError for a parameter that must be given and has no known role."""
    refuse_parts(function, name)
    signature = signature_of(function)
    if signature is None:
        return BY_POSITION
    parameters = list(signature.parameters.values())
    named = _by_name(parameters)
    placed = _by_place(parameters, named)
    sure = {role for p, role in named.items() if role != "old_logp" or meaning(p) == role}
    guessed = frozenset(DATA) - sure
    binding = replace(_assemble(parameters, named | placed), guessed=guessed)
    _check(name, parameters, binding, named)
    return binding


def refuse_parts(function: Callable[..., Any], name: str) -> None:
    """Raises: LossError for a class, and for a method without its object."""
    if isinstance(function, type):
        raise LossError(
            f"{name}: is a class; name a function in it (Class.function), or an instance of it (loss = Class(...))"
        )
    signature = signature_of(function)
    if signature is not None and next(iter(signature.parameters), "") == "self":
        raise LossError(
            f"{name}: is a method and needs its object; make it a @staticmethod, or name a function that calls it"
        )


def _by_name(parameters: Sequence[inspect.Parameter]) -> dict[str, str]:
    """The roles that names give, by parameter."""
    said: dict[str, list[inspect.Parameter]] = {}
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        what = meaning(p.name)
        if _is_half_width(p) if what == "clip_coef" else _is_open(p.default):
            said.setdefault(what, []).append(p)
    new, plain, old = (said.get(what, []) for what in ("new", "logp", "old_logp"))
    plain = sorted(plain, key=lambda p: not is_bare(p.name))
    logp, rest = (new[:1], plain) if new else (plain[:1], plain[1:])
    chosen = {
        "logp": logp,
        "old_logp": _needed(sorted(old, key=lambda p: "old" not in words(p.name))) or rest[:1],
        "advantages": sorted(
            _needed(said.get("advantages") or said.get("returns", [])), key=lambda p: not is_bare(p.name)
        )[:1],
        "mask": _needed(said.get("mask", [])),
        "clip_coef": _of_one_width(said.get("clip_coef", [])),
    }
    return {p.name: role for role, those in chosen.items() for p in those}


def _is_open(default: Any) -> bool:
    """Whether a tensor may take its place: no flag's and no number's default."""
    return default is EMPTY or default is None


def _is_half_width(p: inspect.Parameter) -> bool:
    """Whether ``clip_coef`` takes the place of a clip parameter's default: if that can be a half-width."""
    if p.name == "clip_coef":
        return True
    if isinstance(p.default, bool) or not isinstance(p.default, int | float):
        return _is_open(p.default)
    return ("clip" in words(p.name) or not 0 < p.default < TINY) and p.default <= WIDE


def _of_one_width(candidates: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """All half-widths of a clip; but those that are several by default, as DAPO's 0.2 and 0.28, are the loss's own."""
    several = {p.default for p in candidates if p.name != "clip_coef" and isinstance(p.default, int | float)}
    return [p for p in candidates if len(several) < 2 or p.default not in several]


def _needed(candidates: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """All that must be given (the rollout's and the proximal policy are both the old one); if none must, the first."""
    return [p for p in candidates if p.default is EMPTY] or list(candidates[:1])


def _by_place(parameters: Sequence[inspect.Parameter], roles: Mapping[str, str]) -> dict[str, str]:
    """The roles that no name gives, for parameters whose names say nothing, in the contract's order.

    Where no name says anything, also those that are None by default, and a fourth that must be given is the mask.
    """
    missing = [role for role in DATA if role not in roles.values()]
    free = [
        p
        for p in parameters
        if p.kind in BY_PLACE and p.name not in roles and not meaning(p.name) and _is_open(p.default)
    ]
    needed = [p for p in free if p.default is EMPTY]
    if set(DATA) & set(roles.values()):
        free = needed
    elif len(needed) == len(DATA) + 1 and "mask" not in roles.values():
        missing.append("mask")
    return dict(zip((p.name for p in free), missing, strict=False))


def _assemble(parameters: Sequence[inspect.Parameter], roles: Mapping[str, str]) -> Binding:
    """By position as far as that goes, as losses are called; the clip and whatever follows it by keyword."""
    positional: list[str | Kept] = []
    keywords: list[tuple[str, str]] = []
    left = [role for role in DATA if role not in roles.values()]
    by_keyword = False
    for p in parameters:
        role = roles.get(p.name)
        by_keyword |= role == "clip_coef" or not role  # so that no position is skipped
        if p.kind is p.POSITIONAL_ONLY:
            positional.append(role or Kept(p.default))
            by_keyword = False
        elif p.kind is p.VAR_POSITIONAL:
            positional, left = ([*positional, *left], []) if _is_full(parameters, roles) else (positional, left)
        elif p.kind is p.VAR_KEYWORD:
            keywords += [(role, role) for role in (*left, *({"clip_coef"} - set(roles.values())))]
            left = []
        elif role and (by_keyword or p.kind is p.KEYWORD_ONLY):
            keywords.append((p.name, role))
        elif role:
            positional.append(role)
    while positional and isinstance(positional[-1], Kept):
        positional.pop()
    named = tuple((p.name, roles[p.name]) for p in parameters if p.name in roles)
    return Binding(tuple(positional), tuple(keywords), named)


def _is_full(parameters: Sequence[inspect.Parameter], roles: Mapping[str, str]) -> bool:
    """Whether all that has a place has data's role and goes by it, so that what follows reaches ``*args``."""
    return all(roles.get(p.name, "clip_coef") != "clip_coef" for p in parameters if p.kind in BY_PLACE)


def _check(name: str, parameters: Sequence[inspect.Parameter], binding: Binding, named: Mapping[str, str]) -> None:
    """Raises: LossError for a parameter that gets nothing and needs something, and for a role that nothing takes."""
    remedy = f"wrap the loss: a loss takes {SEQUENCE_CONTRACT if binding.takes_mask else CONTRACT}"
    found = ", ".join(p if p == role else f"{p} as {role}" for p, role in binding.roles)
    known = dict(binding.roles)
    for p in parameters:
        if p.name not in known and p.default is EMPTY and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise LossError(
                f"{name}: nothing is known to give its parameter `{p.name}` (understood: {found or 'none'}); "
                f"give it a default, or {remedy}"
            )
    handed = {*(x for x in binding.positional if isinstance(x, str)), *(role for _, role in binding.keywords)}
    if {"logp", "advantages"} <= set(named.values()):
        handed.add("old_logp")  # REINFORCE has no old policy: what its names say is enough
    lacking = [role for role in DATA if role not in handed]
    if lacking:
        raise LossError(
            f"{name} has no parameter for {' and '.join(lacking)} (understood: {found or 'none'}); {remedy}"
        )
