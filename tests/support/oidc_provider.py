"""A real OpenID provider (django-oauth-toolkit) as a process: `python -m tests.support.oidc_provider FILE`.

FILE is JSON: folder, port, keys (PEM, the first signs), client_id, client_secret, redirect_uri, and users by
name with their password, e-mail address and whether that is verified. The database stays in the folder, so a
provider that is started again has new keys and the same people.
"""

import json
import secrets
import sys
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.urls import include, path

urlpatterns: list[Any] = []


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    """No line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def configure(options: dict[str, Any]) -> None:
    """Django's settings."""
    first, *others = options["keys"]
    settings.configure(
        SECRET_KEY=secrets.token_hex(),
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(Path(options["folder"]) / "provider.sqlite3"),
            }
        },
        # Tables as the models have them now: their histories are not what is tested, and take ten seconds.
        MIGRATION_MODULES=dict.fromkeys(
            ("admin", "auth", "contenttypes", "sessions", "oauth2_provider"), None
        ),
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        # The sign-ins of a test need no slow hash.
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        LOGIN_URL="/admin/login/",
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True,
            "OIDC_ISS_ENDPOINT": f"http://127.0.0.1:{options['port']}/o",
            "OIDC_RSA_PRIVATE_KEY": first,
            "OIDC_RSA_PRIVATE_KEYS_INACTIVE": others,
            "OAUTH2_VALIDATOR_CLASS": f"{__name__}.Validator",
            "SCOPES": {"openid": "sign in", "email": "the e-mail address"},
            "ID_TOKEN_EXPIRE_SECONDS": 600,
        },
    )


def fill(options: dict[str, Any]) -> None:
    """Tables, users and the application that they sign in to."""
    from django.contrib.auth import get_user_model
    from oauth2_provider.models import get_application_model

    call_command("migrate", verbosity=0, run_syncdb=True)
    users = get_user_model()
    for name, user in options["users"].items():
        if not users.objects.filter(username=name).exists():
            users.objects.create_superuser(name, user["email"], user["password"])
    applications = get_application_model()
    if not applications.objects.filter(client_id=options["client_id"]).exists():
        applications.objects.create(
            client_id=options["client_id"],
            client_secret=options["client_secret"],
            client_type="confidential",
            authorization_grant_type="authorization-code",
            redirect_uris=options["redirect_uri"],
            algorithm="RS256",
            skip_authorization=True,
        )


def main() -> None:
    """Serve until killed."""
    options = json.loads(Path(sys.argv[1]).read_text())
    configure(options)
    django.setup()
    from oauth2_provider.oauth2_validators import OAuth2Validator

    class Validator(OAuth2Validator):  # type: ignore[misc]
        """ID tokens with the user's e-mail address."""

        def get_additional_claims(self, request: Any) -> dict[str, Any]:
            """What is added to an ID token."""
            user = options["users"][request.user.username]
            return {"email": user["email"], "email_verified": user["is_verified"]}

    from django.contrib import admin

    module = sys.modules[__name__]
    module.Validator = Validator  # type: ignore[attr-defined]
    sys.modules["tests.support.oidc_provider"] = module
    urlpatterns.extend([path("admin/", admin.site.urls), path("o/", include("oauth2_provider.urls"))])
    fill(options)
    Server.allow_reuse_address = True
    with make_server(
        "127.0.0.1", options["port"], get_wsgi_application(), server_class=Server, handler_class=Quiet
    ) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
