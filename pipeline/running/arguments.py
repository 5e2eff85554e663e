"""What is typed on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from drr2ct.transforms.validation import InputError, listed


def refuse_ignored(context: typer.Context, names: Sequence[str], where: str) -> None:
    """Refuse options that are typed and would do nothing, since whoever typed them thinks that they do.

    Args:
        context: of the command.
        names: of its parameters that do nothing.
        where: they do nothing, as the sentence goes on.

    Raises:
        InputError: if one of them is typed.
    """
    typed = []
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            typed.append(parameter.opts[0])
    if typed:
        them = "it" if len(typed) == 1 else "them"
        raise InputError(f"{listed(typed)} {'has' if them == 'it' else 'have'} no effect {where}; leave {them} out.")


def refuse_unused_split(context: typer.Context, dataset: Path, part: str, drawn: bool) -> None:
    """Refuse ``--split`` and ``--split-seed`` where none is drawn: all patients are taken, or a list says the parts.

    Args:
        context: of the command.
        dataset: folder of the data set.
        part: of it that is asked for.
        drawn: whether the data set has no such list.

    Raises:
        InputError: if one of them is typed and does nothing.
    """
    if part == "all":
        refuse_ignored(context, ("split", "split_seed"), "with --part all")
    if not drawn:
        refuse_ignored(context, ("split", "split_seed"), f"on {dataset}, whose dataset.json says the parts")
