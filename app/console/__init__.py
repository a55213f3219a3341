"""Web console: pages rendered here, plain scripts that speak to the API like any client.

`pages` are the routes, `cookie_auth` is the session, `adapter_list`, `heatmap` and `version_history` make of rows and
reports the values that the templates show. Nothing is built or fetched from elsewhere: templates/ and static/ are all.
"""
