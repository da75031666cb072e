"""The arguments of a fetcher: checked, in one form, and filters asked; no I/O.

Modules, each importing only from those below it::

    selection    select ──▶ Selection ─┬─ .is_named(record), .is_newer(record)
                                       └─ .as_query() ──▶ plain values, for JSON
    term_checks  check_fields, check_terms ─▶ errors and warnings on filters
    filters      as_filter ──▶ ResultFilter ─┬─ (record) ──▶ bool
                                             ├─ .mask(df) ─▶ bool per row
                                             ├─ .AND, .OR, .XOR, .NOT ─▶ Combination
                                             └─ .to_dict() ─▶ plain values, for JSON
                 admits, fields, is_empty, has_functions
    arguments    check_mode, check_positive, check_verbose, user_path, as_limit,
                 check_fetched, only_its_arguments
    values       as_term ──▶ SpecialValue: IsIn, GreaterThan, Pattern, …
                 to_plain, from_plain
"""

from .selection import basic_image_terms, basic_roi_terms

__all__ = ["basic_image_terms", "basic_roi_terms"]
