"""store: canonical bytes under their digest, for ever, and the catalogue of names in SQL.

artefacts/  canonical adapters on disk or in object storage; visible in one rename, never changed afterwards
catalogue/  names, versions and their states; a name moves in one transaction
cluster/    several gateways on one catalogue
audit/      everything that is kept, read again and compared
uploads     the uploads themselves, kept for rescreening

An upload is acknowledged only when both its artefact and its row are on the disk.
"""
