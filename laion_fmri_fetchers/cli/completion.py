"""Completion by shells: the command that sets it up, and its answers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from .options import Commands, Options, Parser, subparsers_of
from .wording import PROGRAM

_SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def _completion_options(command: Parser) -> None:
    command.description = (
        "Print what a shell has to evaluate, such as: "
        f'eval "$({PROGRAM} completion bash)"'
    )
    command.add_argument("shell", choices=_SHELLS)


def _completion(options: Options) -> None:
    """Make a shell complete these commands."""
    import argcomplete

    print(argcomplete.shellcode([PROGRAM], shell=options.shell))


def complete(parser: Parser) -> None:
    """Answer the shell, which asks for the words that may follow, and exit."""
    import argcomplete

    from laion_fmri_fetchers.layout.keys import RECORD_FIELDS
    from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS
    from laion_fmri_fetchers.layout.names import ROI_CATEGORIES, SUBJECTS
    from laion_fmri_fetchers.layout.splits import POOLS
    from laion_fmri_fetchers.layout.trees import EMBEDDING_MODELS

    categories = ROI_CATEGORIES
    words: dict[str, Iterable[str]] = {
        "subject": SUBJECTS,
        "subjects": ["all", *SUBJECTS],
        "category": categories,
        "rois": ["all", "none", *categories, *chain(*categories.values())],
        "sessions": ["all", *(f"ses-{n:02d}" for n in range(1, 31))],
        "where": [f"{field}=" for field in TRIAL_FIELDS],
        "image_where": [f"{field}=" for field in RECORD_FIELDS],
        "models": ["all", *EMBEDDING_MODELS],
        "pool": POOLS,
        "mode": ["download_new", "overwrite", "offline"],
    }
    for command in subparsers_of(parser).values():
        for action in command._actions:
            if action.dest in words:
                action.completer = lambda names=words[action.dest], **_: names  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


COMMANDS: Commands = {
    "completion": (_completion_options, _completion),
}
