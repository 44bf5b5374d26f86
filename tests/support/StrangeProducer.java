// Writes into the feedback topic what nobody expects there, with good feedback between.
// Usage: java -cp 'kafka-clients.jar:...' StrangeProducer.java SERVERS MODEL PREDICTION...
// Sends one good event with each codec, then everything strange, then a last good event; prints the name of each once acknowledged.
import java.nio.charset.StandardCharsets;
import java.util.Properties;
import java.util.UUID;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class StrangeProducer {
    static String servers, topic, model;

    public static void main(String[] given) throws Exception {
        servers = given[0];
        model = given[1];
        topic = model + ".feedback";
        int next = 2;
        for (String codec : new String[] {"none", "gzip", "snappy", "lz4", "zstd"}) {
            send(codec, codec, feedback(given[next++], "f-" + codec));
        }
        byte[] key = bytes("key");
        send("null header", "none", with(new ProducerRecord<>(topic, key, bytes("not JSON")), "nothing", null));
        send("empty header name", "none", with(new ProducerRecord<>(topic, key, bytes("not JSON")), "", bytes("x")));
        send("many headers", "lz4", many(new ProducerRecord<>(topic, key, bytes("not JSON"))));
        send("tombstone", "none", new ProducerRecord<>(topic, key, null));
        send("empty", "none", new ProducerRecord<>(topic, key, new byte[0]));
        send("deep", "zstd", new ProducerRecord<>(topic, key, bytes("[".repeat(100_000))));
        send("not UTF-8", "snappy", new ProducerRecord<>(topic, key, new byte[] {(byte) 0xff, (byte) 0xfe, 0, 1}));
        send("largest", "gzip", new ProducerRecord<>(topic, key, bytes("x".repeat(4_000_000))));
        send("long key", "none", new ProducerRecord<>(topic, new byte[1_000_000], bytes("{}")));
        send("before 1970", "none", new ProducerRecord<>(topic, 0, 0L, null, feedback(given[next++], "f-early").value()));
        send("half an hour ahead", "none",
            new ProducerRecord<>(topic, 0, System.currentTimeMillis() + 1_800_000, null, feedback(given[next++], "f-late").value()));
        send("last", "none", feedback(given[next++], "f-last"));
    }

    static void send(String name, String codec, ProducerRecord<byte[], byte[]> record) throws Exception {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", servers);
        properties.put("compression.type", codec);
        properties.put("max.request.size", "5000000");
        try (KafkaProducer<byte[], byte[]> producer =
                 new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer())) {
            producer.send(record).get();
        }
        System.out.println(name);
    }

    static ProducerRecord<byte[], byte[]> feedback(String prediction, String id) {
        String event = "{\"specversion\":\"1.0\",\"type\":\"ratchet.feedback.received.v1\",\"source\":\"https://example.org/java\","
            + "\"id\":\"" + UUID.randomUUID() + "\",\"subject\":\"" + prediction + "\",\"time\":\"" + java.time.Instant.now()
            + "\",\"data\":{\"feedback_id\":\"" + id + "\",\"prediction_id\":\"" + prediction + "\",\"model_name\":\"" + model
            + "\",\"kind\":\"rating\",\"value\":\"up\"}}";
        return new ProducerRecord<>(topic, bytes(prediction), bytes(event));
    }

    static ProducerRecord<byte[], byte[]> with(ProducerRecord<byte[], byte[]> record, String header, byte[] value) {
        record.headers().add(header, value);
        return record;
    }

    static ProducerRecord<byte[], byte[]> many(ProducerRecord<byte[], byte[]> record) {
        for (int n = 0; n < 5_000; n++) {
            record.headers().add("h" + n, bytes("0123456789"));
        }
        return record;
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
