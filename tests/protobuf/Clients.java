import blockchain_tcp.v1.BlockchainTcp.AddRequest;
import blockchain_tcp.v1.BlockchainTcp.ErrorCode;
import blockchain_tcp.v1.BlockchainTcp.MaxRequest;
import blockchain_tcp.v1.BlockchainTcp.NthPrimesRequest;
import blockchain_tcp.v1.BlockchainTcp.PingRequest;
import blockchain_tcp.v1.BlockchainTcp.Request;
import blockchain_tcp.v1.BlockchainTcp.Response;
import blockchain_tcp.v1.BlockchainTcp.WhereRequest;
import blockchain_tcp.v1.BlockchainTcp.WhoRequest;
import blockchain_tcp.v1.BlockchainTcp.WhyRequest;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.TreeSet;
import java.util.stream.Collectors;

/**
 * A client of protobuf with Google's library and the code that protoc generates from our schema.
 *
 * <p>tests/support/clients.rs says what it is given and what it prints.
 */
public class Clients {
    private static final int PIPELINED = 25;
    private static final List<Long> LONG = Collections.nCopies(1024, 10_000_000L);

    /** Sends requests, and reads the responses in their order. */
    private static final class Connection implements AutoCloseable {
        final Socket socket;
        final OutputStream output;
        final InputStream input;

        Connection(String address, int patience) throws IOException {
            int at = address.lastIndexOf(':');
            socket = new Socket(address.substring(0, at), Integer.parseInt(address.substring(at + 1)));
            socket.setSoTimeout(patience);
            output = new BufferedOutputStream(socket.getOutputStream());
            input = new BufferedInputStream(socket.getInputStream());
        }

        Connection(String address) throws IOException {
            this(address, 30_000);
        }

        void send(List<Request> requests) throws IOException {
            for (Request request : requests) {
                request.writeDelimitedTo(output);
            }
            output.flush();
        }

        /** The next response, or null at the end. */
        Response receive() throws IOException {
            return Response.parseDelimitedFrom(input);
        }

        Response ask(Request request) throws IOException {
            send(List.of(request));
            return receive();
        }

        void showTwo() throws IOException {
            System.out.println(shown(receive()) + ", " + shown(receive()));
        }

        @Override
        public void close() throws IOException {
            socket.close();
        }
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("everything")) {
            askEverything(arguments[1], arguments[2]);
        } else {
            new Load(arguments[1], Integer.parseInt(arguments[2])).run();
        }
    }

    private static Request add(long id, long x, long y) {
        return Request.newBuilder().setId(id).setAdd(AddRequest.newBuilder().setX(x).setY(y)).build();
    }

    private static Request primes(long id, List<Long> places) {
        return Request.newBuilder().setId(id).setNthPrimes(NthPrimesRequest.newBuilder().addAllN(places)).build();
    }

    private static Request why(long id) {
        return Request.newBuilder().setId(id).setWhy(WhyRequest.getDefaultInstance()).build();
    }

    private static boolean isBusy(Response response) {
        return response.getError().getCode() == ErrorCode.ERROR_CODE_UNAVAILABLE;
    }

    private static String shown(Response response) {
        if (response == null) {
            return "the end";
        }
        String id = Long.toUnsignedString(response.getId()) + " ";
        switch (response.getResultCase()) {
            case WHO: return id + "who " + response.getWho().getValue();
            case WHERE: return id + "where " + response.getWhere().getValue();
            case WHY: return id + "why " + response.getWhy().getValue();
            case PING: return id + "ping " + response.getPing().getValue();
            case ADD: return id + "add " + response.getAdd().getValue();
            case MAX: return id + "max " + response.getMax().getValue();
            case NTH_PRIMES:
                List<Long> values = response.getNthPrimes().getValuesList();
                return id + "nth_primes " + values.stream().map(String::valueOf).collect(Collectors.joining(" "));
            default: return id + response.getError().getCode() + " " + response.getError().getMessage();
        }
    }

    private static void askEverything(String address, String narrow) throws IOException {
        try (Connection connection = new Connection(address)) {
            for (Request request : List.of(
                    Request.newBuilder().setId(1).setWho(WhoRequest.getDefaultInstance()).build(),
                    Request.newBuilder().setId(-1).setWhere(WhereRequest.getDefaultInstance()).build(),
                    why(0),
                    Request.newBuilder().setId(4).setPing(PingRequest.getDefaultInstance()).build(),
                    add(5, Long.MIN_VALUE, Long.MAX_VALUE),
                    Request.newBuilder().setId(6).setMax(MaxRequest.newBuilder().setX(-2)).build(),
                    primes(7, List.of(9999L, 1234L, 1L, 2L, 3L, 4L)),
                    add(8, Long.MAX_VALUE, 1),
                    primes(9, List.of()),
                    primes(10, List.of(0L)),
                    Request.newBuilder().setId(11).build())) {
                Response response = connection.ask(request);
                // A busy server may refuse to compute, and says to try again later.
                while (isBusy(response)) {
                    response = connection.ask(request);
                }
                System.out.println(shown(response));
            }
            connection.output.write(new byte[] {3, 'W', 'H', 'O'});
            connection.send(List.of(why(12)));
            connection.showTwo();
            // Longer than a message may be.
            connection.send(List.of(primes(13, Collections.nCopies(70_000, 1L))));
            connection.showTwo();
        }
        try (Connection connection = new Connection(address)) {
            for (int number = 0; number < 1000; number++) {
                add(number, number, 1).writeDelimitedTo(connection.output);
            }
            connection.output.flush();
            connection.socket.shutdownOutput();
            long sum = 0;
            for (int number = 0; number < 1000; number++) {
                Response response = connection.receive();
                if (response.getId() != number) {
                    throw new IOException(shown(response));
                }
                sum += response.getAdd().getValue();
            }
            System.out.println("pipelined " + sum + " " + shown(connection.receive()));
        }
        List<Connection> connections = new ArrayList<>();
        for (int number = 0; number < 250; number++) {
            connections.add(new Connection(address));
        }
        for (int x = 0; x < 250; x++) {
            connections.get(x).send(List.of(add(0, x, 0), add(1, x, 1), add(2, x, 2), add(3, x, 3)));
        }
        long sum = 0;
        for (Connection connection : connections) {
            for (int number = 0; number < 4; number++) {
                sum += connection.receive().getAdd().getValue();
            }
            connection.close();
        }
        System.out.println("over connections " + sum);
        timeOut(address);
        try (Connection connection = new Connection(narrow); Connection second = new Connection(narrow)) {
            second.showTwo();
            connection.showTwo();
        }
    }

    /** More computations than there is time for: the last client has less of it than the server. */
    private static void timeOut(String address) throws IOException {
        List<Connection> busy = new ArrayList<>();
        for (int number = 0; number < 50 * Runtime.getRuntime().availableProcessors(); number++) {
            busy.add(new Connection(address));
        }
        for (Connection connection : busy) {
            connection.send(List.of(primes(1, LONG)));
        }
        try (Connection connection = new Connection(address, 50)) {
            connection.send(List.of(primes(1, LONG), why(2)));
            try {
                System.out.println(shown(connection.receive()));
            } catch (SocketTimeoutException late) {
                System.out.println("time-out");
            }
        }
        // Its response may still come: there is another connection for what comes next.
        try (Connection connection = new Connection(address)) {
            System.out.println("then " + shown(connection.ask(why(3))));
        }
        boolean computed = false;
        TreeSet<ErrorCode> errors = new TreeSet<>();
        for (Connection connection : busy) {
            Response response = connection.receive();
            computed |= response.getNthPrimes().getValuesList().equals(Collections.nCopies(1024, 179_424_673L));
            if (response.hasError()) {
                errors.add(response.getError().getCode());
            }
            connection.close();
        }
        System.out.println("computed " + (computed ? "True" : "False"));
        System.out.println("refused " + errors.stream().map(String::valueOf).collect(Collectors.joining(" ")));
    }

    /** Calls without pause until the server closes the connections. */
    private static final class Load {
        private final List<Thread> threads = new ArrayList<>();
        private final List<String> failed = new ArrayList<>();
        private final int[] done;
        private int asked;
        private boolean isClosed;
        private long answered;
        private long unaccepted;

        Load(String address, int connections) throws IOException {
            done = new int[connections];
            for (int number = 0; number < connections; number++) {
                Connection connection = new Connection(address);
                int place = number;
                threads.add(new Thread(() -> rounds(place, connection)));
            }
        }

        void run() throws IOException, InterruptedException {
            threads.forEach(Thread::start);
            BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
            while (input.readLine() != null) {
                System.out.println(isRound() ? "round" : "closed");
            }
            for (Thread thread : threads) {
                thread.join();
            }
            System.out.println(answered + " " + unaccepted + " 0 " + failed);
        }

        /** Waits for a round of each connection, and returns whether they all are still open. */
        private synchronized boolean isRound() throws InterruptedException {
            asked += 1;
            for (int place = 0; place < done.length && !isClosed; place++) {
                while (done[place] < asked && !isClosed) {
                    wait();
                }
            }
            return !isClosed;
        }

        private void rounds(int place, Connection connection) {
            boolean isOpen = true;
            for (int number = 0; isOpen; number++) {
                int since;
                synchronized (this) {
                    since = asked;
                }
                isOpen = round(connection, number);
                synchronized (this) {
                    done[place] = since;
                    isClosed |= !isOpen;
                    notifyAll();
                }
            }
        }

        private boolean round(Connection connection, int number) {
            List<Request> requests = new ArrayList<>();
            List<String> expected = new ArrayList<>();
            for (int y = 0; y < PIPELINED; y++) {
                requests.add(add(y, number, y));
                expected.add(y + " add " + (number + y));
            }
            requests.addAll(List.of(why(PIPELINED), primes(99, List.of(100L))));
            expected.addAll(List.of(PIPELINED + " why 42", "99 nth_primes 541"));
            try {
                connection.send(requests);
                for (int place = 0; place < expected.size(); place++) {
                    Response response = connection.receive();
                    if (response == null) {
                        count(place, expected.size() - place);
                        return false;
                    }
                    // On a busy machine a computation may get no turn in time.
                    if (!isBusy(response) && !shown(response).equals(expected.get(place))) {
                        fail(expected.get(place) + ": " + shown(response));
                    }
                }
            } catch (IOException error) {
                fail(error.toString());
                return false;
            }
            count(expected.size(), 0);
            return true;
        }

        private synchronized void count(int answered, int unaccepted) {
            this.answered += answered;
            this.unaccepted += unaccepted;
        }

        private synchronized void fail(String what) {
            failed.add(what);
        }
    }
}
