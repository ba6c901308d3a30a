"""The page in the browser: `/`, and its files under `/page`."""

import secrets
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import NoMatchFound

from whisper_npu import LANGUAGES, __version__

FOLDER = Path(__file__).parent / "page"
WAVEFORM = "wavesurfer/wavesurfer.esm.js"  # the library, which `make setup` puts there
LIVE = "realtime"  # the route of the WebSocket that gives text while one speaks
_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    "": "text/plain",  # the licence of the library
}
# Fresh files after an upgrade; they come from this machine or its network.
_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
# Only the page's own scripts run, and it asks only its own server. The library brings a style
# element, which the nonce allows; recordings are played from the browser's memory.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self'; "
    "media-src blob:; connect-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
def page() -> Response:
    """The page."""
    nonce = secrets.token_urlsafe(16)
    html = Template((FOLDER / "index.html").read_text("utf-8")).substitute(nonce=nonce)
    headers = {
        **_HEADERS,
        "Cache-Control": "no-store",  # each nonce is used once
        "Content-Security-Policy": _POLICY.format(nonce=nonce),
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(html, headers=headers)


@router.get("/page/about.json")
def about(request: Request) -> Response:
    """What the page has to know of this server before it has a key."""
    known = {
        "version": __version__,
        "languages": dict(LANGUAGES),
        "has_waveform": (FOLDER / WAVEFORM).is_file(),
        "has_live": _has_route(request, LIVE),
    }
    return JSONResponse(known, headers=_HEADERS)


@router.get("/page/{name:path}")
def page_file(name: str) -> Response:
    """A file of the page."""
    for path in FOLDER.rglob("*"):  # so that no name leads out of the folder
        content_type = _TYPES.get(path.suffix)
        if path.relative_to(FOLDER).as_posix() == name and content_type and path.is_file():
            headers = {**_HEADERS, "Content-Type": f"{content_type}; charset=utf-8"}
            return Response(path.read_bytes(), headers=headers)
    raise HTTPException(404)


def _has_route(request: Request, name: str) -> bool:
    try:
        request.app.url_path_for(name)
    except NoMatchFound:
        return False
    return True
