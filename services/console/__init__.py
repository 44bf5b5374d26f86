"""Console: server-rendered pages and a JSON API, where people watch rounds, review candidates and decide.

app.py lists the routes. Each page is a module of pages/, each action a function of actions.py, which page and API share.
people.py resolves keys to people with rights; sessions.py signs cookies and CSRF tokens; guard.py sets headers and bounds
requests. rendering.py renders templates/, charts.py draws SVG, static/ holds style, script and htmx. live_events.py tells
open pages what changed; notifications.py sends webhooks. No page loads anything from elsewhere or runs inline script.
"""
