"""Store: canonical bytes under their digest, for ever, and the catalogue of names in SQL.

artefacts/     canonical adapters on disk or in object storage; visible in one step, never changed afterwards
catalogue/     names, versions and their states; a name moves in one transaction
cluster/       several gateways on one catalogue
audit/         checks of everything stored: read again and compared
uploads        the uploads themselves, kept for rescreening
open           catalogue and artefacts, opened as the settings say
migrate_store  move from one machine's store to a shared one
failpoints     places where crash tests kill the process

An upload is acknowledged only when both its artefact and its row are on the disk.
"""
