"""What a person looks at in a browser: pages rendered here, plain scripts that speak to the API like any client.

`session` says who is looking, `pages` are the routes, `listing`, `heatmap` and `history` make of rows and reports what the
templates show. Nothing is built or fetched from elsewhere: templates/ and static/ are all there is.
"""
