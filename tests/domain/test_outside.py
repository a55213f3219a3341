"""Addresses outside: which origins a list covers, which network addresses may be reached, and texts that are no URL."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.outside import Outside, Url


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        ("https://hooks.example.com", "https://hooks.example.com/a?b=c", True),
        ("https://hooks.example.com", "https://hooks.example.com:443", True),
        ("https://hooks.example.com", "https://hooks.example.com:8443/", False),
        ("https://hooks.example.com", "http://hooks.example.com/", False),
        ("https://hooks.example.com", "https://evil-hooks.example.com/", False),
        ("https://hooks.example.com", "https://hooks.example.com.evil.org/", False),
        ("https://*.example.com", "https://a.b.example.com/", True),
        ("https://*.example.com", "https://example.com/", False),
        ("https://*.example.com", "https://evilexample.com/", False),
        ("http://hooks.internal:8080", "http://hooks.internal:8080/x", True),
        ("http://[::1]:9000", "http://[0:0:0:0:0:0:0:1]:9000/", True),
    ],
)
def test_an_origin_covers_its_own_urls_only(entry: str, url: str, allowed: bool) -> None:
    outside = Outside.of([entry])
    if allowed:
        assert outside.check(url).scheme == url.partition(":")[0]
    else:
        with pytest.raises(ValueError, match="operator"):
            outside.check(url)


@pytest.mark.parametrize(
    "text",
    [
        "https://user@hooks.example.com/",
        "https://hooks.example.com@evil.org/",
        "https://hooks.example.com\\@evil.org/",
        "https://hooks.example.com#@evil.org/",
        "https://hooks.example.com/#x",
        "https://HOOKS.example.com/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:65536/",
        "https://höoks.example.com/",
        "https://hooks.example.com/\r\nhost: x",
        "https://hooks.example.com/ä",
        "https://-hooks.example.com/",
        "https://[::1/",
        "https://[gg]/",
        "https:///path",
        "javascript:alert(1)",
        "https://hooks.example.com/" + "a" * 2048,
    ],
)
def test_a_text_that_can_be_read_in_two_ways_is_no_url(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Url.of(text)


@given(st.text(max_size=60))
def test_what_is_taken_as_a_url_is_written_as_it_was_sent(text: str) -> None:
    try:
        url = Url.of(f"https://{text}")
    except ValueError:
        return
    assert f"https://{text}".startswith(("https://" + url.host, "https://[", "https://" + url.authority))
    assert text.isascii()
    assert "@" not in text.partition("/")[0]


@pytest.mark.parametrize(
    "entry", ["example.com", "https://", "https://*.com", "https://*", "ftp://a.b", "10.0.0.1/8", "https://*.1.2.3.4"]
)
def test_an_entry_that_is_neither_origin_nor_network_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"origin|domain"):
        Outside.of([entry])


PRIVATE = (
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:1::1"),
    *("64:ff9b:1::a00:1", "fec0::1", "::10.0.0.1", "::ffff:0:10.0.0.1", "4000::1"),
)
URL = Url.of("https://hooks.example.com/")


@pytest.mark.hostile("U27")
@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_that_is_not_public_is_reached_unless_it_is_named(address: str) -> None:
    found = ip_address(address)
    assert not Outside.of(["https://hooks.example.com"]).reaches(found, URL)
    assert Outside.of([f"{address}/{found.max_prefixlen}"]).reaches(found, URL)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_a_public_address_is_reached(address: str) -> None:
    assert Outside().reaches(ip_address(address), URL)


@pytest.mark.hostile("U27")
def test_an_origin_that_names_an_address_is_reached_there_and_no_other_one_is() -> None:
    outside = Outside.of(["http://10.0.0.5:9000", "http://*.example.com"])
    assert outside.reaches(ip_address("10.0.0.5"), outside.check("http://10.0.0.5:9000/"))
    assert not outside.reaches(ip_address("10.0.0.6"), outside.check("http://10.0.0.5:9000/"))
    assert not outside.reaches(ip_address("10.0.0.5"), outside.check("http://a.example.com/"))
