import java.io.BufferedInputStream;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.function.BiConsumer;

/**
 * A client of blockchain-tcpd in Java 17 or later, with the standard library alone.
 *
 * <pre>java Client.java [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]</pre>
 *
 * The class is to be copied, the program at its end shows its use. README.md, beside this file, says what both do.
 */
public final class Client implements AutoCloseable {
    private static final int LONGEST_REQUEST = 1023; // bytes, without the line end
    private static final int LONGEST_REPLY = 4096; // bytes: a server that sends longer lines speaks something else
    private static final int BATCH = 4096; // bytes of requests sent at once: the system takes them even when the server reads none
    private static final int ATTEMPTS = 5; // in a row without a reply, before it gives up
    private static final int PAUSE = 100; // milliseconds before the second attempt, and twice as long before each further one

    /** What the server answers: a value; or, if there is a word (for programs), an error, and the text is a sentence for people. */
    public record Reply(String word, String text) {}

    /** The server has no room now. */
    @SuppressWarnings("serial")
    public static final class BusyException extends IOException {
        BusyException(String sentence) {
            super("the server is busy: " + sentence);
        }
    }

    private final String host;
    private final int port;
    private final int timeout;
    private Socket socket;
    private InputStream input;
    private int waiting; // replies that are still to come

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
        waiting = 0;
    }

    /** Hands on each request and the reply to it, in order. Throws an IOException when there is no connection. */
    public void ask(List<String> requests, BiConsumer<String, Reply> take) throws IOException, InterruptedException {
        for (String request : requests) {
            if (request.length() > LONGEST_REQUEST || !request.matches("[\\t -~]*[!-~][\\t -~]*")) {
                throw new IllegalArgumentException("not a request: " + request);
            }
        }
        int answered = 0;
        for (int failures = 0; answered < requests.size(); ) {
            try {
                List<String> batch = firstBatch(requests.subList(answered, requests.size()));
                send(batch);
                for (String request : batch) {
                    Reply reply = reply();
                    waiting--;
                    answered++;
                    failures = 0;
                    take.accept(request, reply);
                }
            } catch (IOException error) {
                close();
                failures++;
                if (failures == ATTEMPTS) {
                    throw error;
                }
                Thread.sleep((long) PAUSE << (failures - 1));
            }
        }
    }

    /** To be called when nothing has been asked for a while, or the server closes the connection. */
    public void keepAlive() throws IOException, InterruptedException {
        ask(List.of("PING"), (request, reply) -> {
            if (!reply.equals(new Reply(null, "PONG"))) {
                close();
            }
        });
    }

    private void send(List<String> batch) throws IOException {
        // What nobody has waited for, because the caller has thrown, or what has come unasked is no reply to what is asked next.
        if (socket != null && (waiting > 0 || input.available() > 0)) {
            close();
        }
        if (socket == null) {
            try {
                connect();
            } catch (IOException error) {
                throw new IOException("no connection: " + error.getMessage(), error);
            }
        }
        String lines = String.join("\n", batch) + "\n";
        waiting = batch.size();
        socket.getOutputStream().write(lines.getBytes(StandardCharsets.US_ASCII));
    }

    private void connect() throws IOException {
        IOException failure = null;
        for (InetAddress address : InetAddress.getAllByName(host)) {
            Socket candidate = new Socket();
            try {
                candidate.connect(new InetSocketAddress(address, port), timeout);
                socket = candidate;
                input = new BufferedInputStream(socket.getInputStream());
                return;
            } catch (IOException error) {
                candidate.close();
                failure = error;
            }
        }
        throw failure;
    }

    private Reply reply() throws IOException {
        String line = line();
        if (!line.startsWith("ERR ")) {
            return new Reply(null, line);
        }
        String[] words = line.split(" ", 3);
        String sentence = words.length > 2 ? words[2] : "";
        // These two are about the connection, whatever was asked, and the server closes after them.
        return switch (words[1]) {
            case "BUSY" -> throw new BusyException(sentence);
            case "TIMEOUT" -> throw new IOException("the server closed the connection: " + sentence);
            default -> new Reply(words[1], sentence);
        };
    }

    private String line() throws IOException {
        long deadline = System.nanoTime() + timeout * 1_000_000L;
        StringBuilder line = new StringBuilder();
        try {
            for (;;) {
                socket.setSoTimeout((int) Math.max(1, (deadline - System.nanoTime()) / 1_000_000));
                int next = input.read();
                if (next == '\n') {
                    return line.toString();
                } else if (next < 0) {
                    throw new IOException("the server closed the connection");
                } else if (next < ' ' || next > '~' || line.length() == LONGEST_REPLY) {
                    throw new IOException("the server sent something that is no reply");
                }
                line.append((char) next);
            }
        } catch (SocketTimeoutException error) {
            throw new IOException("no reply in time", error);
        }
    }

    /** As many of the requests as are sent at once. */
    private static List<String> firstBatch(List<String> requests) {
        int number = 0;
        for (int size = 0; number < requests.size(); number++) {
            size += requests.get(number).length() + 1;
            if (size > BATCH) {
                break;
            }
        }
        return requests.subList(0, number);
    }

    // The program.

    private static final FileOutputStream STDOUT = new FileOutputStream(FileDescriptor.out);

    private static void put(String line) {
        try {
            STDOUT.write(line.getBytes(StandardCharsets.US_ASCII));
        } catch (IOException error) {
            if (!"Broken pipe".equals(error.getMessage())) {
                System.err.println("client: stdout: " + error.getMessage());
            }
            System.exit(74);
        }
    }

    /** Returns the exit status that this comes to. */
    private static int askAndPrint(Client client, List<String> requests) throws InterruptedException {
        boolean[] refused = {false};
        try {
            client.ask(requests, (request, reply) -> {
                if (reply.word() == null) {
                    put(request + "\t" + reply.text() + "\n");
                } else {
                    System.err.println(request + ": " + reply.word() + ": " + reply.text());
                    refused[0] = true;
                }
            });
            return refused[0] ? 1 : 0;
        } catch (IllegalArgumentException error) {
            return wrong(error.getMessage());
        } catch (IOException error) {
            System.err.println("client: " + client.host + ":" + client.port + ": " + error.getMessage());
            return error instanceof BusyException ? 75 : 69;
        }
    }

    /** Waits, and keeps the connection alive meanwhile. All is in milliseconds. */
    private static void pause(Client client, int left, int keepalive) throws InterruptedException {
        for (; left > keepalive; left -= keepalive) {
            Thread.sleep(keepalive);
            try {
                client.keepAlive();
            } catch (IOException error) {
                // The next request says so, if it still is so then.
            }
        }
        Thread.sleep(left);
    }

    private static int wrong(String message) {
        System.err.println("usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]");
        System.err.println("client: " + message);
        System.exit(64);
        return 64;
    }

    /** This number of seconds in milliseconds. */
    private static int milliseconds(String text) {
        double seconds = text.matches("\\d*\\.?\\d+") ? Double.parseDouble(text) : 0;
        return seconds >= 0.001 && seconds <= 1e6 ? (int) (seconds * 1000) : wrong("not a number of seconds: " + text);
    }

    public static void main(String[] arguments) throws InterruptedException {
        List<String> words = List.of(arguments);
        int repeat = 0;
        if (words.size() > 1 && words.get(0).equals("--repeat")) {
            repeat = milliseconds(words.get(1));
            words = words.subList(2, words.size());
        }
        if (words.size() < 3 || !words.get(0).matches("[^-].*")) {
            wrong("nothing to ask");
        }
        String port = words.get(1);
        if (!port.matches("\\d{1,5}") || Integer.parseInt(port) < 1 || Integer.parseInt(port) > 65535) {
            wrong("not a port: " + port);
        }
        List<String> requests = words.subList(2, words.size());
        int timeout = milliseconds(System.getenv().getOrDefault("TIMEOUT", "2"));
        int keepalive = milliseconds(System.getenv().getOrDefault("KEEPALIVE", "60"));

        Client client = new Client(words.get(0), Integer.parseInt(port), timeout);
        while (repeat > 0) {
            askAndPrint(client, requests);
            pause(client, repeat, keepalive);
        }
        System.exit(askAndPrint(client, requests));
    }
}
