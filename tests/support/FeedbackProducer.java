// A producer of feedback in Java, written from schemas/json/asyncapi.json alone.
// Usage: java -cp 'kafka-clients.jar:...' FeedbackProducer.java SERVERS MODEL PREDICTION...
// Sends feedback about the predictions, one case each, and prints the name of each case once it is acknowledged.
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class FeedbackProducer {
    static final String SOURCE = "https://example.org/java-app";
    static final String TYPE = "ratchet.feedback.received.v1";
    static String topic, model;

    public static void main(String[] given) throws Exception {
        model = given[1];
        topic = model + ".feedback";
        Properties common = new Properties();
        common.put("bootstrap.servers", given[0]);
        common.put("acks", "all");
        common.put("enable.idempotence", "true");
        try (KafkaProducer<String, byte[]> producer = producer(common)) {
            String[] about = java.util.Arrays.copyOfRange(given, 2, given.length);
            send(producer, "correction", structured(about[0], "f-correction", "correction", "\"b\"", "bob"));
            send(producer, "binary", binary(about[1], "f-binary", "rating", "\"up\"", "bob"));
            send(producer, "comment", structured(about[2], "f-comment", "comment",
                "\"call +44 20 7946 0958, account GB33BUKB20201555555555\"", "bob"));
            send(producer, "score", structured(about[3].toUpperCase(), UUID.randomUUID().toString().toUpperCase(), "score", "0.25",
                "d41d8cd98f00b204e9800998ecf8427e"));
            send(producer, "mark", marked(structured(about[4], "f-mark", "correction", "\"b\"", null)));
            send(producer, "withdrawn", structured(about[5], "f-withdrawn", "correction", "\"b\"", "bob"));
            send(producer, "retract", binary(about[5], "f-retract", "retract", "\"f-withdrawn\"", "bob"));
            send(producer, "unknown label", structured(about[6], "f-unknown", "correction", "\"astronomy\"", "bob"));
            ProducerRecord<String, byte[]> batch = structured(about[6], "f-batch", "rating", "\"up\"", "bob");
            batch.headers().remove("content-type").add("content-type", bytes("application/cloudevents-batch+json"));
            send(producer, "batch", batch);
            ProducerRecord<String, byte[]> untyped = new ProducerRecord<>(topic, about[6],
                bytes(text(structured(about[6], "f-untyped", "rating", "\"up\"", "bob")).replace("\"type\":\"" + TYPE + "\",", "")));
            send(producer, "untyped", untyped);
            send(producer, "score 7", structured(about[6], "f-score7", "score", "7", "bob"));
            send(producer, "sideways", structured(about[6], "f-sideways", "rating", "\"sideways\"", "bob"));
            ProducerRecord<String, byte[]> foreign = structured(about[6], "f-foreign", "rating", "\"up\"", "bob");
            send(producer, "foreign", new ProducerRecord<>(topic, null, about[6],
                bytes(text(foreign).replace("\"model_name\":\"" + model, "\"model_name\":\"another-" + model)), foreign.headers()));
        }
        Properties transactional = new Properties();
        transactional.putAll(common);
        transactional.put("transactional.id", "java-" + model);
        try (KafkaProducer<String, byte[]> producer = producer(transactional)) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(structured(given[2 + 7], "f-committed", "rating", "\"down\"", "eve"));
            producer.commitTransaction();
            System.out.println("committed");
            producer.beginTransaction();
            producer.send(structured(given[2 + 7], "f-aborted", "comment", "\"never\"", "eve")).get();
            producer.flush();
            producer.abortTransaction();
            System.out.println("aborted");
        }
    }

    static KafkaProducer<String, byte[]> producer(Properties properties) {
        return new KafkaProducer<>(properties, new StringSerializer(), new ByteArraySerializer());
    }

    static void send(KafkaProducer<String, byte[]> producer, String name, ProducerRecord<String, byte[]> record) throws Exception {
        producer.send(record).get();
        System.out.println(name);
    }

    static String data(String prediction, String id, String kind, String value, String user) {
        String person = user == null ? "" : ",\"user\":\"" + user + "\"";
        return "{\"feedback_id\":\"" + id + "\",\"prediction_id\":\"" + prediction + "\",\"model_name\":\"" + model + "\",\"kind\":\""
            + kind + "\",\"value\":" + value + person + "}";
    }

    static ProducerRecord<String, byte[]> structured(String prediction, String id, String kind, String value, String user) {
        String event = "{\"specversion\":\"1.0\",\"type\":\"" + TYPE + "\",\"source\":\"" + SOURCE + "\",\"id\":\"" + UUID.randomUUID()
            + "\",\"subject\":\"" + prediction + "\",\"time\":\"" + java.time.Instant.now() + "\",\"data\":"
            + data(prediction, id, kind, value, user) + "}";
        ProducerRecord<String, byte[]> record = new ProducerRecord<>(topic, prediction, bytes(event));
        record.headers().add("content-type", bytes("application/cloudevents+json"));
        return record;
    }

    static ProducerRecord<String, byte[]> binary(String prediction, String id, String kind, String value, String user) {
        ProducerRecord<String, byte[]> record =
            new ProducerRecord<>(topic, prediction, bytes(data(prediction, id, kind, value, user)));
        Map<String, String> headers = Map.of("ce_specversion", "1.0", "ce_type", TYPE, "ce_source", SOURCE,
            "ce_id", UUID.randomUUID().toString(), "ce_subject", prediction, "ce_time", java.time.Instant.now().toString(),
            "content-type", "application/json");
        headers.forEach((header, content) -> record.headers().add(header, bytes(content)));
        return record;
    }

    static ProducerRecord<String, byte[]> marked(ProducerRecord<String, byte[]> record) {
        return new ProducerRecord<>(record.topic(), null, record.key(), bytes("\ufeff" + text(record)), record.headers());
    }

    static String text(ProducerRecord<String, byte[]> record) {
        return new String(record.value(), StandardCharsets.UTF_8);
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
