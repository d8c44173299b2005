import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;

/**
 * A client of blockchain-tcpd in Java 17 or later, with the standard library alone.
 *
 * <pre>java Client.java [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]</pre>
 *
 * It connects to any address of a name, within a time-out; sends many requests at once and matches their replies, however
 * these are cut into packets; gives an ERR as a value of its own; keeps the connection alive with PING; and, when it is lost,
 * makes a new one and asks again what was not answered. README.md, beside this file, says what is printed and when.
 */
public final class Client implements AutoCloseable {
    /** In bytes: a server that sends longer lines speaks something else. */
    private static final int LONGEST_REPLY = 4096;
    /** In bytes of requests sent at once: the system takes them even when the server reads none. */
    private static final int BATCH = 4096;
    /** In a row without a reply, before it gives up. */
    private static final int ATTEMPTS = 5;
    /** In milliseconds, before the second attempt, and twice as long before each further one. */
    private static final int PAUSE = 100;

    /** What the server answers to a request: a value or an error. */
    public sealed interface Reply {
        String request();
    }

    public record Value(String request, String value) implements Reply {}

    /** A word for programs and a sentence for people. */
    public record Refusal(String request, String word, String sentence) implements Reply {}

    /** The server has no room now. */
    public static final class BusyException extends IOException {
        private static final long serialVersionUID = 1;

        BusyException(String sentence) {
            super("the server is busy: " + sentence);
        }
    }

    private final String host;
    private final int port;
    private final int timeout;
    private Socket socket;
    private InputStream input;
    private final byte[] buffer = new byte[LONGEST_REPLY + 1];
    private int begin;
    private int end;

    /** The time-out is in milliseconds. It connects when it is asked something, and again when the connection is lost. */
    public Client(String host, int port, int timeout) {
        this.host = host;
        this.port = port;
        this.timeout = timeout;
    }

    @Override
    public void close() {
        try {
            if (socket != null) {
                socket.close();
            }
        } catch (IOException error) {
            // It is given up anyway.
        }
        socket = null;
        begin = end = 0;
    }

    /** Hands on the reply to each request, in order. Throws when there is no connection. */
    public void ask(List<String> requests, Consumer<Reply> replies) throws IOException, InterruptedException {
        int[] answered = {0};
        for (int failures = 0; answered[0] < requests.size(); ) {
            int before = answered[0];
            try {
                exchange(requests.subList(before, requests.size()), reply -> {
                    answered[0]++;
                    replies.accept(reply);
                });
            } catch (IOException error) {
                close();
                failures = answered[0] > before ? 1 : failures + 1;
                if (failures == ATTEMPTS) {
                    throw error;
                }
                Thread.sleep((long) PAUSE << (failures - 1));
            }
        }
    }

    /** To be called when nothing has been asked for a while, or the server closes the connection. */
    public void keepAlive() throws IOException, InterruptedException {
        List<Reply> replies = new ArrayList<>();
        ask(List.of("PING"), replies::add);
        if (!replies.equals(List.of(new Value("PING", "PONG")))) {
            close();
        }
    }

    private void exchange(List<String> requests, Consumer<Reply> replies) throws IOException {
        // Nobody was asked anything: what has come is last words, or no reply to what is asked next.
        if (socket != null && (begin < end || input.available() > 0)) {
            close();
        }
        if (socket == null) {
            connect();
        }
        for (int done = 0; done < requests.size(); ) {
            List<String> batch = batch(requests.subList(done, requests.size()));
            String lines = String.join("\n", batch) + "\n";
            socket.getOutputStream().write(lines.getBytes(StandardCharsets.US_ASCII));
            for (String request : batch) {
                replies.accept(reply(request, line()));
            }
            done += batch.size();
        }
    }

    private void connect() throws IOException {
        IOException failure = new IOException("the name has no address");
        for (InetAddress address : InetAddress.getAllByName(host)) {
            Socket candidate = new Socket();
            try {
                candidate.connect(new InetSocketAddress(address, port), timeout);
                input = candidate.getInputStream();
                socket = candidate;
                return;
            } catch (IOException error) {
                candidate.close();
                failure = error;
            }
        }
        throw failure;
    }

    private static Reply reply(String request, String line) throws IOException {
        if (!line.startsWith("ERR ")) {
            return new Value(request, line);
        }
        String[] words = line.split(" ", 3);
        String sentence = words.length > 2 ? words[2] : "";
        // These two are about the connection, whatever was asked, and the server closes after them.
        return switch (words[1]) {
            case "BUSY" -> throw new BusyException(sentence);
            case "TIMEOUT" -> throw new IOException("the server closed the connection: " + sentence);
            default -> new Refusal(request, words[1], sentence);
        };
    }

    private String line() throws IOException {
        long deadline = System.nanoTime() + timeout * 1_000_000L;
        for (int at = begin; ; at++) {
            if (at == end) {
                at -= begin;
                fill(deadline);
            }
            if (buffer[at] == '\n') {
                String line = new String(buffer, begin, at - begin, StandardCharsets.US_ASCII);
                begin = at + 1;
                return line;
            }
            if (buffer[at] < ' ' || buffer[at] > '~') {
                throw new IOException("the server sent something that is no reply");
            }
        }
    }

    /** Moves what is there to the front, and reads at least a byte behind it. */
    private void fill(long deadline) throws IOException {
        System.arraycopy(buffer, begin, buffer, 0, end - begin);
        end -= begin;
        begin = 0;
        if (end == buffer.length) {
            throw new IOException("the server sent something that is no reply");
        }
        long left = (deadline - System.nanoTime()) / 1_000_000;
        if (left <= 0) {
            throw new SocketTimeoutException("no reply in time");
        }
        socket.setSoTimeout((int) left);
        int read = input.read(buffer, end, buffer.length - end);
        if (read < 0) {
            throw new IOException("the server closed the connection");
        }
        end += read;
    }

    /** The first of the requests, as many as are sent at once. */
    private static List<String> batch(List<String> requests) {
        int number = 0;
        for (int size = 0; number < requests.size(); number++) {
            size += requests.get(number).length() + 1;
            if (number > 0 && size > BATCH) {
                break;
            }
        }
        return requests.subList(0, number);
    }

    // --- the program

    /** What the program ends with when it is stopped. */
    private static volatile int status;

    /** Returns the exit status that this comes to. */
    private static int askAndPrint(Client client, List<String> requests) throws InterruptedException {
        boolean[] refused = {false};
        try {
            client.ask(requests, reply -> {
                if (reply instanceof Refusal refusal) {
                    System.err.println(refusal.request() + ": " + refusal.word() + ": " + refusal.sentence());
                    refused[0] = true;
                } else if (reply instanceof Value value) {
                    System.out.println(value.request() + "\t" + value.value());
                }
            });
            return refused[0] ? 1 : 0;
        } catch (IOException error) {
            System.err.println("Client.java: " + client.host + ":" + client.port + ": " + error.getMessage());
            return error instanceof BusyException ? 75 : 69;
        }
    }

    /** Waits, and keeps the connection alive meanwhile. All is in milliseconds. */
    private static void pause(Client client, int time, int keepalive) throws InterruptedException {
        for (; time > keepalive; time -= keepalive) {
            Thread.sleep(keepalive);
            try {
                client.keepAlive();
            } catch (IOException error) {
                // The next request says so, if it still is so then.
            }
        }
        Thread.sleep(time);
    }

    private static void wrong(String message) {
        System.err.println("usage: java Client.java [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]");
        System.err.println("Client.java: " + message);
        System.exit(64);
    }

    /** This number of seconds in milliseconds. */
    private static int milliseconds(String text) {
        if (!text.matches("\\d*\\.?\\d+") || Double.parseDouble(text) <= 0 || Double.parseDouble(text) > 1e6) {
            wrong("not a number of seconds: " + text);
        }
        return (int) Math.max(1, Double.parseDouble(text) * 1000);
    }

    private static String setting(String name, String otherwise) {
        return System.getenv().getOrDefault(name, otherwise);
    }

    public static void main(String[] arguments) throws InterruptedException {
        List<String> words = List.of(arguments);
        int repeat = 0;
        if (words.size() > 1 && words.get(0).equals("--repeat")) {
            repeat = milliseconds(words.get(1));
            words = words.subList(2, words.size());
        }
        if (words.size() < 3 || words.get(0).startsWith("-")) {
            wrong("nothing to ask");
        }
        String port = words.get(1);
        if (!port.matches("\\d{1,5}") || Integer.parseInt(port) < 1 || Integer.parseInt(port) > 65535) {
            wrong("not a port: " + port);
        }
        List<String> requests = words.subList(2, words.size());
        // A line without a word would get no reply; a line end, or too long a line, would be something else.
        for (String request : requests) {
            if (!request.matches("[\\t -~]*[!-~][\\t -~]*") || request.length() > 1023) {
                wrong("not a request: " + request);
            }
        }
        int timeout = milliseconds(setting("TIMEOUT", "2"));
        int keepalive = milliseconds(setting("KEEPALIVE", "60"));

        try (Client client = new Client(words.get(0), Integer.parseInt(port), timeout)) {
            if (repeat == 0) {
                status = askAndPrint(client, requests);
            } else {
                // At SIGINT and SIGTERM. The system closes the connection; without halt, the status would tell of the signal.
                Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(status)));
            }
            while (repeat > 0) {
                status |= askAndPrint(client, requests) == 0 ? 0 : 1;
                pause(client, repeat, keepalive);
            }
        }
        System.exit(status);
    }
}
