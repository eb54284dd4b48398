"""`make docs`: docs/api.md, and one OpenAPI document of the whole cluster, from the servers' own marks.

python -m ops.api_page writes docs/api.md and build/openapi.json.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import tornado.web

from blockserver import app as blockserver
from metaserver import app as metaserver
from notifserver import app as notifserver
from runtime.document import Json, Operation, build_document, iter_operations
from runtime.metrics import ServerMetrics
from wire.errors import all_errors

PAGE = Path("docs/api.md")
DOCUMENT = Path("build/openapi.json")
SERVERS = {
    "metaserver": "Metadata: the tree and its history, accounts and devices.",
    "blockserver": "The bytes of files, in blocks.",
    "notifserver": "Waiting for changes.",
}
INTRODUCTION = """# API

Written by `make docs` from the marks of the handlers (`runtime/openapi.py`); a test holds it up to date.

Three kinds of server answer, any one of a kind as well as another. `GET /.well-known/shardbox` of a
metaserver says where they are. Each server describes itself as OpenAPI 3.1 at `GET /openapi.json`. For
generators of clients `make docs` also writes `build/openapi.json`, one document of them all.

* **Authentication.** `Authorization: Bearer <access token>` where *token* is said. A device gets its token
  from `/v1/devices/link` and new ones from `/v1/devices/refresh`.
* **Errors.** Any status of 400 and above has the body
  `{"error": {"code", "message", "retryable", "details"}}`. Codes are stable; [the table](#error-codes) has
  them all. 500 `internal_error` is a defect, and stands nowhere below.
* **Coming again.** 429, 503 and 507 carry `Retry-After`, in seconds.
* **Idempotency.** A write under an `Idempotency-Key` acts once, however often it is sent.
* **Request ids.** Every answer has `X-Request-Id`: the one that the request brought, or a new one. The logs
  have it too.
* **Ids** are opaque. An `ns_id` is a string of digits, as it does not fit a double.
"""


class _Nothing:
    """Stands where a route table only passes a part on."""

    def __getattr__(self, name: str) -> "_Nothing":
        return self


def empty_apps() -> dict[str, tornado.web.Application]:
    """Each server's application by its kind, with nothing behind it: only its route table is of use."""
    nothing = cast(Any, _Nothing())
    return {
        "metaserver": metaserver.make_app(_empty(metaserver.Parts)),
        "blockserver": blockserver.make_app(_empty(blockserver.Parts)),
        "notifserver": notifserver.make_app(nothing, nothing, ServerMetrics()),
    }


def _empty(parts: Any) -> Any:
    return parts(**{field.name: _Nothing() for field in dataclasses.fields(parts)})


def build_cluster_document() -> Json:
    """One document of all servers; what each process says of itself alone is the metaserver's.

    Each address names the kind of its server, to be replaced by where that is.
    """
    found: dict[str, Operation] = {}
    servers: dict[str, str] = {}
    for name, app in empty_apps().items():
        for operation in iter_operations(app):
            found.setdefault(operation.operation_id, operation)
            servers.setdefault(operation.path, name)
    document = build_document("Shardbox API", found.values())
    for path, methods in document["paths"].items():
        methods["servers"] = [{"url": f"https://{servers[path]}.example"}]
    return document


def format_page() -> str:
    """docs/api.md."""
    lines = [INTRODUCTION]
    schemas: Json = {}
    for name, app in empty_apps().items():
        document = build_document(name, iter_operations(app))
        schemas |= document["components"]["schemas"]
        lines += [f"## {name.capitalize()}", "", SERVERS[name], ""]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                lines += _format_operation(method, path, operation)
    lines += ["## Types", "", "A field with `?` may be left out.", ""]
    for name in sorted(schemas):
        lines += _format_type(name, schemas[name])
    lines += [
        "## Error codes",
        "",
        "| code | status | a retry can help | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for error in sorted(all_errors().values(), key=lambda error: (error.status, error.code)):
        meaning = (error.__doc__ or "").partition("\n")[0]
        lines.append(
            f"| `{error.code}` | {error.status} | {'yes' if error.retryable else 'no'} | {meaning} |"
        )
    return "\n".join(lines) + "\n"


def _format_operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"### {method.upper()} {path}"
    yield ""
    yield f"{operation['summary']}." + (" *Token.*" if operation["security"] else "")
    if "description" in operation:
        yield ""
        yield operation["description"]
    yield ""
    for parameter in operation["parameters"][1:]:
        mark = "" if parameter["required"] else "?"
        yield f"* {parameter['in']} `{parameter['name']}`{mark}: {parameter['description']}"
    if "requestBody" in operation:
        yield f"* takes {_format_content(operation['requestBody']['content'])}"
    refused = []
    for status, answer in operation["responses"].items():
        if int(status) < 400:
            yield f"* {status}: {_format_content(answer['content']) if 'content' in answer else 'nothing'}"
        else:
            codes = answer["content"]["application/json"]["schema"]["allOf"][1]["properties"]["error"]
            refused.append(f"{status} " + ", ".join(f"`{c}`" for c in codes["properties"]["code"]["enum"]))
    if refused:
        yield f"* refused with {'; '.join(refused)}"
    yield ""


def _format_content(content: Json) -> str:
    ((kind, media),) = content.items()
    if kind != "application/json":
        return f"`{kind}`: {media['schema']['description']}"
    return _format_schema(media["schema"])


def _format_schema(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "title" in schema:
        return f"[{schema['title']}](#{schema['title'].lower()})"
    if "anyOf" in schema:
        return " or ".join(_format_schema(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_format_schema(schema['items'])}"
    if schema["type"] == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_format_schema(schema['additionalProperties'])}"
    return str(schema["type"]) + _format_bounds(schema)


def _format_bounds(schema: Json) -> str:
    low = schema.get("minimum", schema.get("minLength"))
    high = schema.get("maximum", schema.get("maxLength"))
    if high == 2**63 - 1:
        high = None
    if low is None and high is None:
        return ""
    unit = " characters" if schema["type"] == "string" else ""
    if high is None:
        return f", from {low}{unit}"
    return f", at most {high}{unit}" if low in (None, 0) else f", {low} to {high}{unit}"


def _format_type(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if "description" in schema:
        yield schema["description"]
        yield ""
    if "properties" not in schema:
        yield _format_schema({key: value for key, value in schema.items() if key != "title"})
        yield ""
        return
    needed = schema["required"]
    for field, inner in schema["properties"].items():
        default = inner.get("default")
        told = f"; {json.dumps(default)} unless told" if default not in (None, {}, []) else ""
        yield f"* `{field}`{'' if field in needed else '?'}: {_format_schema(inner)}{told}"
    if schema["properties"]:
        yield ""


def main() -> None:
    """Write both files."""
    PAGE.write_text(format_page())
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(json.dumps(build_cluster_document(), indent=1) + "\n")
    print(f"==> {PAGE} and {DOCUMENT}")


if __name__ == "__main__":
    main()
