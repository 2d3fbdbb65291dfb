"""What we add to Locust's web UI: a tab that says, while a run goes on, whether its numbers could be believed.

Locust's page shows a tab as a table of rows that it polls from `/stats/requests`; the rows are `pulse.py`'s.
"""

import json
from dataclasses import asdict

from flask import Response, request
from locust.web import WebUI

from loadtest.keeper import RunKeeper

KEY = "socketswarm"


def add_trust_tab(web_ui: WebUI, keeper: RunKeeper) -> None:
    """Add the tab to a web UI. Its rows are the pulse of the keeper's current run."""
    assert web_ui.app is not None
    columns = [{"key": "what", "title": "Question"}, {"key": "now", "title": "Now"}, {"key": "means", "title": ""}]
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Trust", "key": KEY}],
        "extended_tables": [{"key": KEY, "structure": columns}],
    }

    @web_ui.app.after_request
    def add_rows(response: Response) -> Response:
        if request.endpoint == "locust.request_stats" and response.is_json:
            shown = response.get_json()
            shown["extended_stats"] = [{"key": KEY, "data": [asdict(row) for row in keeper.pulse.rows()]}]
            response.set_data(json.dumps(shown))
        return response
