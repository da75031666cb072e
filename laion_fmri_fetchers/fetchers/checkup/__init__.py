"""The check-up: the real services, met once, against the known facts.

What is known of the dataset is in `layout` and in the checks; here it is compared with
the bucket, the access service and this machine, by a sample that is quick and small::

    doctor ─▶ reach     name, connection, TLS, proxy, first pages of the listing
      └▶ survey         Sample: listings of a subject in every tree, and of a session
           └▶ CHECKS    several at once: (context) ─▶ points
    without the bucket: machine_checks, and service_checks of the access service

A check is a generator function of the `Context`, and a row of `CHECKS`. It reads by
``context.client``, whose bytes are counted and limited. What it raises becomes a failed
point; where what it needs was not reached, it becomes a note. ``expectations.ini`` says
what is expected of each point, and what to do where it is not so.
"""
