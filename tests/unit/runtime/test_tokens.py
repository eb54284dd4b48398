"""The cluster's own tokens: how often an address may show some that are not good."""

import pytest

from runtime import rates, tokens
from runtime.rates import FORGED_BURST, FORGED_PER_ADDRESS_S, RateLimiter
from runtime.tokens import TokenIssuer, TokenVerifier, generate_keys
from wire.errors import TooManyRequests, Unauthenticated
from wire.ids import AccountId, DeviceId
from wire.internal import DeviceCaller

PRIVATE, PUBLIC = generate_keys()
HERE, THERE = "192.0.2.1", "2001:db8::1"


def caller(name: str = "x") -> DeviceCaller:
    return DeviceCaller(AccountId(f"dbid:{name}"), DeviceId(f"device:{name}"))


def good(name: str = "x") -> str:
    return f"Bearer {TokenIssuer(PRIVATE).issue(caller(name))}"


def forged(name: str = "x") -> str:
    return f"Bearer {TokenIssuer(generate_keys()[0]).issue(caller(name))}"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> TokenVerifier:
    return TokenVerifier(PUBLIC, forged=RateLimiter(0.1, 3, clock))


async def spend(verifier: TokenVerifier, address: str = HERE) -> None:
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await verifier.verify(forged(), address)


async def test_an_address_shows_so_many_forged_tokens(
    verifier: TokenVerifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    await spend(verifier)
    with monkeypatch.context() as patch:
        patch.delattr("runtime.tokens.jwt.decode")  # no more work is done for them
        with pytest.raises(TooManyRequests) as refused:
            await verifier.verify(forged(), HERE)
    assert refused.value.retry_after_s == 10
    await spend(verifier, THERE)
    clock.now += 10
    with pytest.raises(Unauthenticated):
        await verifier.verify(forged(), HERE)
    with pytest.raises(TooManyRequests):
        await verifier.verify(forged(), HERE)


async def test_a_household_of_ipv6_is_one_address(verifier: TokenVerifier):
    for address in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8::3"):
        with pytest.raises(Unauthenticated):
            await verifier.verify(forged(), address)
    with pytest.raises(TooManyRequests):
        await verifier.verify(forged(), "2001:db8::4")
    with pytest.raises(Unauthenticated):
        await verifier.verify(forged(), "2001:db8:0:1::1")


async def test_a_token_that_is_known_is_good_from_there_too(verifier: TokenVerifier, clock: Clock):
    assert await verifier.verify(good(), THERE) == caller()
    await spend(verifier)
    assert await verifier.verify(good(), HERE) == caller()
    with pytest.raises(TooManyRequests):
        await verifier.verify(good("new"), HERE)
    assert await verifier.verify(good("new"), THERE) == caller("new")
    assert await verifier.verify(good("new"), HERE) == caller("new")
    clock.now += 10
    assert await verifier.verify(good("later"), HERE) == caller("later")


async def test_good_tokens_and_none_at_all_cost_nothing(verifier: TokenVerifier):
    for number in range(5):
        await verifier.verify(good(str(number)), HERE)
        for header in (None, "Basic eDp5", "Bearer", f"Bearer {'x' * (tokens.MAX_TOKEN_CHARS + 1)}"):
            with pytest.raises(Unauthenticated):
                await verifier.verify(header, HERE)
    await spend(verifier)


async def test_only_so_many_addresses_are_remembered(
    verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rates, "MAX_BUCKETS", 2)
    for address in (HERE, THERE, "192.0.2.3"):
        await spend(verifier, address)
    await spend(verifier, HERE)
    with pytest.raises(TooManyRequests):
        await verifier.verify(forged(), HERE)


def test_the_limits_are_those_of_the_docs():
    assert (FORGED_PER_ADDRESS_S, FORGED_BURST) == (50.0, 500)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"keys": []}', b'{"keys": [{}]}', b'{"keys": [{"kty": "OKP"}]}', PUBLIC]
)
def test_a_file_without_a_signing_key_is_refused(content: bytes):
    with pytest.raises(ValueError):
        TokenIssuer(content)
    if content != PUBLIC:
        with pytest.raises(ValueError):
            TokenVerifier(content)
