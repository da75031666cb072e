"""The command line: ``laion-fmri-fetchers`` and ``python -m laion_fmri_fetchers``.

::

    main.main ─▶ _parser          a subparser per row of COMMANDS, with its options
       ├▶ options.run             the command's action: a call of the package
       └▶ wording.on_a_shell      what warnings and errors say, in words of a shell

A command is two functions side by side, its options and its action, and a row of
``COMMANDS`` in its module: `setup`, `images`, `stimuli`, `upkeep`, `demo`. Results go
to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 130 stopped by
Ctrl-C.
"""
