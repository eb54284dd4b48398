"""The OpenAPI documents of all servers, as they come from the route tables, and docs/api.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado.web
from openapi_spec_validator import validate

from ops.api_page import PAGE, build_cluster_document, empty_apps, format_page
from runtime.document import Unmarked, build_document, iter_operations
from runtime.openapi import Parameter, endpoint
from runtime.web import BaseHandler, InternalHandler
from wire.api import CommitFile
from wire.errors import all_errors

APPS = empty_apps()
ROOT = Path(__file__).parents[2]
DOCUMENTS = {name: build_document(name, iter_operations(app)) for name, app in APPS.items()}
DOCUMENTS["cluster"] = build_cluster_document()
SCHEMA_MAPS = ("properties", "patternProperties", "$defs")
SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SCHEMA_KEYS = ("items", "additionalProperties", "not")


@pytest.fixture(params=list(DOCUMENTS))
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    return DOCUMENTS[request.param]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method != "servers":
                yield path, method, operation


def schemas_in(node: Any) -> Iterator[Any]:
    """Every place of the document where a schema stands, nested ones too."""
    if isinstance(node, list):
        for item in node:
            yield from schemas_in(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "schema":
                yield from nested(value)
            elif key == "schemas":
                for schema in value.values():
                    yield from nested(schema)
            else:
                yield from schemas_in(value)


def nested(schema: Any) -> Iterator[Any]:
    yield schema
    if isinstance(schema, dict):
        for key in SCHEMA_MAPS:
            for inner in schema.get(key, {}).values():
                yield from nested(inner)
        for key in SCHEMA_LISTS:
            for inner in schema.get(key, []):
                yield from nested(inner)
        for key in SCHEMA_KEYS:
            if key in schema:
                yield from nested(schema[key])


def test_the_page_is_up_to_date():
    assert (ROOT / PAGE).read_text() == format_page(), "run `make docs`"


def test_it_is_a_valid_document(document):
    validate(document)


def test_no_schema_says_nothing(document):
    found = list(schemas_in(document))
    assert len(found) > 20
    says = {"type", "$ref", "anyOf", "allOf", "oneOf", "enum", "const"}
    for schema in found:
        assert schema is False or (isinstance(schema, dict) and says & schema.keys()), schema


def test_each_route_for_users_is_in_it():
    for name, app in APPS.items():
        routes = [rule for rule in app.wildcard_router.rules if not issubclass(rule.target, InternalHandler)]
        assert len(DOCUMENTS[name]["paths"]) == len(routes)
        assert not any("internal" in path for path in DOCUMENTS[name]["paths"])


def test_each_operation_has_a_name_of_its_own_and_a_summary(document):
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(operation["summary"] for _, _, operation in operations(document))


def test_what_needs_a_token_can_be_refused_for_its_lack(document):
    for path, _, operation in operations(document):
        if operation["security"]:
            codes = error_codes(operation["responses"]["401"])
            assert {"invalid_access_token", "device_revoked"} <= codes, path


def test_a_signed_address_can_be_refused_as_its_caller_can():
    answers = DOCUMENTS["blockserver"]["paths"]["/v1/uploads/{grant}/{hash}"]["put"]["responses"]
    assert error_codes(answers["401"]) == {"invalid_access_token", "device_revoked"}
    assert error_codes(answers["403"]) == {"identity_not_linked", "invalid_upload_url", "forbidden"}


def test_who_is_to_come_again_is_told_when(document):
    for path, _, operation in operations(document):
        for status in {"429", "503", "507"} & operation["responses"].keys():
            assert "Retry-After" in operation["responses"][status]["headers"], (path, status)


def test_every_error_is_named_under_its_own_status(document):
    errors = all_errors()
    for path, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            for code in error_codes(answer):
                assert errors[code].status == int(status), (path, code)
        assert "internal_error" not in error_codes(operation["responses"].get("500", {}))


def error_codes(answer: dict[str, Any]) -> set[str]:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return {
        code
        for part in schema.get("allOf", [])
        for code in part.get("properties", {})
        .get("error", {})
        .get("properties", {})
        .get("code", {})
        .get("enum", ())
    }


class Silent(BaseHandler):
    def get(self) -> None: ...


class OfTwo(BaseHandler):
    @endpoint(None, None, parameters=(Parameter("a", "path", str, "A.", is_required=True),))
    def get(self, _a: str, _b: str) -> None: ...


def test_a_route_without_a_mark_does_not_pass():
    with pytest.raises(Unmarked, match=r"Silent\.get"):
        list(iter_operations(tornado.web.Application([("/silent", Silent)])))
    with pytest.raises(Unmarked, match="path parameters"):
        list(iter_operations(tornado.web.Application([("/(.*)/(.*)", OfTwo)])))


class Single(BaseHandler):
    @endpoint(CommitFile, None)
    def post(self) -> None:
        """Take one."""


def test_one_operation_alone_needs_no_tag():
    document = build_document("t", iter_operations(tornado.web.Application([("/v1/x/one", Single)])))
    body = document["paths"]["/v1/x/one"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert "op" in schema["properties"]
    assert "op" not in schema["required"]
    assert "op" in document["components"]["schemas"]["CommitFile"]["required"]
    assert body["required"] is True
