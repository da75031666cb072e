"""The arguments of a fetcher: checked, in one form, and filters asked; no I/O.

Rooms, each importing only from those below it::

    selection    select ──▶ Selection ─┬─ .is_named(record)
                    │                  └─ .as_query() ──▶ plain values, for JSON
                    ├─ _image_terms, _with_terms, _roi_filter, _trial_filter
                    └─ _names, _roi_names
    arguments    check_mode, check_positive, check_verbose, check_fields, as_limit,
                 check_fetched, check_terms
    filters      as_filter ──▶ ResultFilter ─┬─ (record) ──▶ bool
                                             ├─ .mask(df) ─▶ columns.Rows
                                             ├─ .AND, .OR, .XOR, .NOT ─▶ Combination
                                             └─ .to_dict() ─▶ values.to_plain
                 admits, fields, is_empty, has_functions
    columns      Rows.match ─┬─ _match_quickly ─▶ _match_numbers, _match_strings,
                             │                    _match_bound
                             └─ _match_distinct
    values       as_term ──▶ SpecialValue: IsIn, GreaterThan, Pattern, …
                 to_plain, from_plain
"""

from .selection import basic_image_terms, basic_roi_terms

__all__ = ["basic_image_terms", "basic_roi_terms"]
