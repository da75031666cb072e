"""What was fetched or loaded, as one HTML page and as figures.

`page` fills the template ``page.html`` by jinja2 from the tables of `tables` and the
pictures of `figures`. All is read from the disk and from kept listings; no socket is
opened.
"""
