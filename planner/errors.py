"""One exception tree; every message is one line and says what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KvplanError(Exception):
    """Anything a user can put right. The command line prints it in one line and exits with 2."""


class UnknownNameError(KvplanError):
    """A model, GPU, format, engine or quantity that the catalogue does not hold."""


class InputError(KvplanError):
    """A number or combination of options that cannot be planned."""


class CardError(KvplanError):
    """A model card or GPU file that cannot be read or contradicts itself."""


class HubError(KvplanError):
    """A model of the Hugging Face hub that cannot be read: missing, gated, out of reach."""


class OutputError(KvplanError):
    """A result that could not be written."""


def unknown_name(kind: str, name: str, known: Iterable[str], remedy: str) -> UnknownNameError:
    """Build the error for a name nobody knows, with the nearest ones that exist.

    >>> print(unknown_name("model", "lama3-70b", ["llama3-70b", "gpt2-xl"], "'kvplan models' lists them all"))
    unknown model 'lama3-70b'; did you mean llama3-70b? 'kvplan models' lists them all
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    near = near or [n for n in names if name.lower() in n.lower()][:3]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    shown = name if len(name) <= 60 else name[:57] + "..."
    return UnknownNameError(f"unknown {kind} {shown!r}; {hint}{remedy}")
