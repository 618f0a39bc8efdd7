"""Why a checkpoint cannot be loaded, in its own words: the keys of its configuration and the names of its tensors."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Buffers that older files hold and today's networks compute: rotary frequencies, and the masks of causal attention.
_BUFFERS = re.compile(r"\b(inv_freq|cos_cached|sin_cached|position_ids|masked_bias|attn\.attention\.bias|attn\.bias)$")
# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into the names of tensors.
_WRAPPER = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_SIZE = re.compile(r"(^|_)(num|n|size|dim|heads|layers|factor)(_|$)")


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that older files hold and today's networks compute."""
    return _BUFFERS.search(name) is not None


def wrong_tensors(kind: str, info: Mapping[str, Any], saved: Iterable[str] = ()) -> str:
    """What transformers' loading report finds wrong, in one line with what to do; empty where nothing is.

    Args:
        kind: the class of the causal LM.
        info: the report.
        saved: the classes that its ``config.json`` names.
    """
    if info["missing_keys"]:
        return _missing(kind, info["missing_keys"], info["unexpected_keys"], saved)
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0]
        return (
            f"the shape of {name} is {list(found)} in its files and {list(wanted)} by its config.json; the two must "
            "come from one checkpoint"
        )
    more = [name for name in info["unexpected_keys"] if not is_buffer(name)]
    if more:
        return (
            f"its files hold {_named(more)}, which {kind} has no place for; the config.json of this very model is "
            "needed, and the causal LM's tensors alone"
        )
    return ""


def _missing(kind: str, missing: Iterable[str], unexpected: Iterable[str], saved: Iterable[str]) -> str:
    absent = set(missing)
    first = min(absent)
    leading = {name.removesuffix(first) for name in unexpected if name.endswith(f".{first}")}
    for pattern in (_WRAPPER, *(re.compile(f"^({re.escape(prefix)})") for prefix in sorted(leading))):
        plain = {name: pattern.sub("", name) for name in unexpected}
        if absent <= set(plain.values()):
            given = next(name for name in sorted(plain) if plain[name] in absent)
            found = pattern.search(given)
            return (
                f"its files hold {_named(absent)} under other names ({given}), with the prefix "
                f"`{found[0] if found else ''}` of what the model was wrapped in (DistributedDataParallel, "
                "torch.compile, a trainer): take it out of the names, or save the model that is wrapped"
            )
    lacking = f"its files lack {_named(absent)}"
    body = next((name for name in saved if name != kind and name.endswith("Model")), None)
    if body and len(absent) == 1:
        return f"{lacking}, which {kind} needs: its config.json says {body}, the body without a head; save {kind}"
    return f"{lacking}, which {kind} needs; fetch or save the whole checkpoint again"


def _named(names: Iterable[str]) -> str:
    """Up to three names, in their order, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return f"the tensor{'s' * (len(ordered) > 1)} {', '.join(ordered[:3])}{rest}"


def parts_that_do_not_fit(reports: Iterable[str]) -> str:
    """The tensors that transformers could not join from several in the files (experts, for example)."""
    found = [name for report in reports for name in re.findall(r"^(\S+)\s*\| CONVERSION", report, re.MULTILINE)]
    return f"what its files hold of {_named(found)} is not complete; fetch or save it again" if found else ""


def wrong_key(config: Mapping[str, Any], error: BaseException) -> str:
    """The keys of a ``config.json`` whose values transformers' error is about; empty where none can be told.

    The error quotes the value of one, as in ``module 'torch' has no attribute 'float99'``, or divides by a size of 0.
    """
    if isinstance(error, ZeroDivisionError):
        zero = [key for key, value in _scalars(config) if value == 0 and type(value) is int and _SIZE.search(key)]
        return f"{', '.join(f'{key}: 0' for key in zero)}: what divides by it needs 1 at least" if zero else ""
    quoted = set(re.findall(r"'([^']+)'", str(error)))
    if not quoted.isdisjoint(config):  # the error itself names a key, and says more
        return ""
    found = [f"{key}: {value}" for key, value in _scalars(config) if isinstance(value, str) and value in quoted]
    return f"{', '.join(found)}: transformers has nothing of this name" if found else ""


def _scalars(content: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, each with its dotted key."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _scalars(value, f"{at}.{key}" if at else str(key))
    elif at:
        yield at, content
