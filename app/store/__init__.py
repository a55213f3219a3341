"""Canonical bytes for ever under their digest (`blobs`, files), and the catalogue of names (`catalogue`, SQL).

An artefact becomes visible in one rename and is never changed afterwards; a name moves in one transaction. Only when
both are on the disk may anybody be told that an upload was accepted.
"""
