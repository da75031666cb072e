"""transfer: bytes over HTTP to disk.

::

    download_files ─▶ Run ─▶ JobQueue              transfer, jobs
        ├ FileDownload.open ─▶ Claim.take          file_download, locks
        │     Partial, Leftover                    partials, leftovers, owners, ranges
        ├ RangeDownload.fetch                      range_download, address
        │     Connections.ask, chunks ─▶ Session.ask_raw      connections
        ├ Partial.mismatch ─▶ ways_to_check        checksums
        ├ folder_error, words_on_full_disk         disks
        └ Progress.show                            progress

    list_objects, list_many ─▶ in_sessions ─▶ Session.ask     bucket
        └ parse_page                               pages
    RangeReader.read ─▶ JobQueue ─▶ Connections.ask, chunks   range_reader, spans
    read_documents ─▶ Session.ask                  documents

    Session, in_sessions, tls, redirected          http: set up in one place
    trouble                                        troubles: what errors mean
    POLICY, retry_after                            policy: tries, waits, portions
"""
