"""Signatures of webhooks, against the example of the Standard Webhooks specification."""

from app.domain.webhook import secret_of, signed_headers


def test_the_specifications_example_has_its_signature() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    headers = signed_headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_webhook_has_a_secret_of_its_own_and_the_same_each_time() -> None:
    master = b"m" * 32
    assert secret_of(master, "wh_1") == secret_of(master, "wh_1")
    assert len({secret_of(master, "wh_1"), secret_of(master, "wh_2"), secret_of(b"n" * 32, "wh_1")}) == 3
