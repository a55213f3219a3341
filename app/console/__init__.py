"""Web console: server-rendered pages, and plain scripts that use the API like any client.

`pages` holds the routes, `cookie_auth` the session; `adapter_list`, `heatmap` and `version_history` turn rows and reports
into the values that the templates show. There is no build step and nothing is fetched from other sites: templates/ and
static/ are everything.
"""
