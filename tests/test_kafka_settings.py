"""Settings of Kafka that cannot work are refused when they are loaded, with line and way out; secrets are no settings."""

from pathlib import Path

import pytest

from schemas.settings import SettingsError, load_settings
from serving.http.access import Keys, read_keys, store_keys
from serving.keys_file import assignments
from serving.messaging.connection import Broker
from serving.messaging.publisher import Topics

CLUSTER = '[kafka]\nbootstrap_servers = "k:9092"\n'
SASL = CLUSTER + 'security_protocol = "SASL_SSL"\n'
REFUSED = {
    '[kafka]\nbootstrap_servers = "k"': "line 2: kafka.bootstrap_servers = 'k': 'k': expected host:port",
    '[kafka]\nbootstrap_servers = "k:9092,k:70000"': "'k:70000': expected host:port",
    '[kafka]\nsecurity_protocol = "SSL"': "line 2: kafka.security_protocol = 'SSL': needs kafka.bootstrap_servers",
    SASL: 'kafka.sasl_mechanism = None: SASL_SSL needs a mechanism: "PLAIN", "SCRAM-SHA-256"',
    SASL + 'sasl_mechanism = "GSSAPI"': "line 4: kafka.sasl_mechanism = 'GSSAPI': expected 'PLAIN'",
    SASL + 'sasl_mechanism = "PLAIN"': "kafka.sasl_username = None: PLAIN needs a user: set kafka.sasl_username",
    SASL + 'sasl_mechanism = "PLAIN"\nsasl_username = "u"\noauth_token_url = "https://t"': (
        "line 6: kafka.oauth_token_url = 'https://t': works with kafka.sasl_mechanism = \"OAUTHBEARER\" alone"
    ),
    SASL + 'sasl_mechanism = "OAUTHBEARER"\noauth_token_url = "https://t"': "needs kafka.sasl_username, the client id",
    SASL
    + 'sasl_mechanism = "OAUTHBEARER"\noauth_scope = "s"': "line 5: kafka.oauth_scope = 's': needs kafka.oauth_token_url",
    CLUSTER + 'sasl_mechanism = "PLAIN"': 'works with SASL alone: set kafka.security_protocol to "SASL_SSL"',
    CLUSTER + 'ssl_ca_file = "ca.pem"': "line 3: kafka.ssl_ca_file = 'ca.pem': works with TLS alone",
    CLUSTER + "ssl_check_hostname = false": "line 3: kafka.ssl_check_hostname = False: works with TLS alone",
    CLUSTER + 'security_protocol = "SSL"\nssl_certificate_file = "c.pem"': (
        "kafka.ssl_certificate_file needs the private key: set kafka.ssl_key_file"
    ),
    CLUSTER
    + 'security_protocol = "SSL"\nssl_key_file = "c.key"': "needs its certificate: set kafka.ssl_certificate_file",
    CLUSTER + 'sasl_password = "geheim"': "line 3: kafka.sasl_password is a secret, which is no setting: write "
    "RATCHET_KAFKA_PASSWORD=... into keys.env",
    CLUSTER + 'ssl_key_password = "geheim"': "RATCHET_KAFKA_KEY_PASSWORD=... into keys.env",
    CLUSTER + 'oauth_token = "geheim"': "RATCHET_KAFKA_TOKEN=... into keys.env",
    CLUSTER + 'topic_prefix = "a b"': "line 3: kafka.topic_prefix = 'a b': should match pattern",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_work_is_refused_with_line_and_way_out(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(text, {}, root=Path())
    assert REFUSED[text] in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_secret_in_a_variable_of_a_setting_is_refused_without_its_value() -> None:
    with pytest.raises(SettingsError, match=r"^RATCHET_KAFKA__PASSWORD: .* write RATCHET_KAFKA_PASSWORD=") as caught:
        load_settings(CLUSTER, {"RATCHET_KAFKA__PASSWORD": "geheim"}, root=Path())
    assert "geheim" not in str(caught.value)


def test_new_keys_leave_the_secrets_of_kafka_in_keys_env(tmp_path: Path) -> None:
    path = tmp_path / "keys.env"
    store_keys(path, Keys(api_key="one", secret="two"))
    with path.open("a", encoding="utf-8") as file:
        file.write("export RATCHET_KAFKA_PASSWORD='p w # 1'\n")
    store_keys(path, Keys(api_key="three", secret="two"))
    assert read_keys(path) == Keys(api_key="three", secret="two")
    assert assignments(path)["RATCHET_KAFKA_PASSWORD"] == "p w # 1"


def test_prefix_client_and_codec_reach_topics_groups_and_broker(tmp_path: Path) -> None:
    text = '[model]\nname = "shop"\n' + CLUSTER + 'topic_prefix = "team."\ncompression = "gzip"\n'
    settings = load_settings(text, {}, root=tmp_path)
    topics = Topics.of(settings.stream_name)
    assert (topics.predictions, topics.consumer_group) == ("team.shop.predictions", "team.shop.consumer")
    assert topics.replay_group == "team.shop.feedback.dlq.replay"
    broker = Broker.of(settings)
    assert (broker.client_id, broker.compression, str(broker)) == ("ratchet-shop", "gzip", "k:9092")
